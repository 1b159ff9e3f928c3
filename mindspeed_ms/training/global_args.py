# SPDX-License-Identifier: Apache-2.0
"""The arguments of this process, for code that asks for them by Megatron's ``get_args()``."""

from __future__ import annotations

from argparse import Namespace

from mindspeed_ms.core import run_state


def set_global_args(args: Namespace | None) -> None:
    """Store the arguments; None forgets them."""
    run_state.current().args = args


def get_args() -> Namespace:
    """Return the stored arguments.

    Raises:
        RuntimeError: none have been stored yet.

    """
    args = run_state.current().args
    if args is None:
        raise RuntimeError(
            "the arguments are not known yet; call initialize_megatron() or set_global_args() first"
        )
    return args
