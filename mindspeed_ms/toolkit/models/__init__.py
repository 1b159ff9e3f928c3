"""Models by name: configurations, Auto classes, and models called as in ``transformers``."""
