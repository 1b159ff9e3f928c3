"""Megatron's path of ``mindspeed_ms.data``."""
