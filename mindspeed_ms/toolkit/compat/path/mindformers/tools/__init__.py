"""Tools of MindFormers, by their names there."""
