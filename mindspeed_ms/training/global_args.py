"""The arguments of this process, for code that asks for them by Megatron's ``get_args()``."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass


@dataclass(slots=True)
class _Holder:
    args: Namespace | None = None


_HOLDER = _Holder()


def set_global_args(args: Namespace | None) -> None:
    """Store the arguments; None forgets them."""
    _HOLDER.args = args


def get_args() -> Namespace:
    """Return the stored arguments.

    Raises:
        RuntimeError: none have been stored yet.

    """
    if _HOLDER.args is None:
        raise RuntimeError(
            "the arguments are not known yet; call initialize_megatron() or set_global_args() first"
        )
    return _HOLDER.args
