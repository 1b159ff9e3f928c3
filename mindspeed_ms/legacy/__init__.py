"""The packages of the user guide's import paths: model and data."""
