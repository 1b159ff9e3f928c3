# SPDX-License-Identifier: Apache-2.0
"""Megatron-LM's training, native on MindSpore's dynamic graph.

Importing the package starts nothing: no device, no launcher, no communication library. The names
of the high-level room, ``toolkit``, are here too; each is loaded when it is first asked for.
"""

from mindspeed_ms import toolkit

try:
    from mindspeed_ms._version import __version__  # setup.py writes it, from git's tags
except ImportError:  # a checkout that was never installed
    __version__ = "0.3.0.dev0"

__all__ = ["__version__", *toolkit.__all__]


def __getattr__(name: str) -> object:
    """A name of the high-level room (PEP 562)."""
    if name in toolkit.EXPORTS:
        return getattr(toolkit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
