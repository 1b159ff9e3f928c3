"""``torchrun`` for MindSpore: torch's launcher commands translated to ``msrun``."""
