"""Kernels of the native library (not built yet)."""

from mindspeed_ms.ops.portable import *  # noqa: F401,F403


def unavailable() -> str:
    """Why the set cannot run."""
    return "the native library is not built"
