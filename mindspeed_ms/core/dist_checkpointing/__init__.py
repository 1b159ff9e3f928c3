"""Checkpoints: saved in shards, loaded into any layout."""
