"""A task, a model and a tokenizer as one call."""
