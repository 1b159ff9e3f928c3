"""Checkpoints of any format, read as catalogs. Needs NumPy only."""
