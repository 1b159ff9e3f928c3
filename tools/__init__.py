"""Command-line tools; their functions can be imported by tests."""
