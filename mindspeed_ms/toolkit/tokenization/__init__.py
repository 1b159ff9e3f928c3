"""Text to token ids and back, with the interface of `transformers`."""
