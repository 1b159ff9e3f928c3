"""Text generation with the options, and the results, of ``transformers``' ``generate``."""
