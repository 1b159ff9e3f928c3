"""Loaders under the path of Megatron's legacy package."""
