# SPDX-License-Identifier: Apache-2.0
"""Arguments, initialisation, and training, under Megatron's names.

Names are loaded when they are asked for: reading flags and configurations needs no MindSpore.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms import old_names

_HOME: Mapping[str, str] = MappingProxyType(
    {
        "get_args": "global_args",
        "get_batch": "data",
        "get_train_valid_test_num_samples": "data",
        "init_configs_from_args": "from_args",
        "initialize_megatron": "initialize",
        "pretrain": "training",
        "print_rank_0": "output",
        "set_parallel_context": "utils",
        "set_seed": "utils",
        "train_valid_test_datasets_provider": "data",
    }
)
"""Name -> module of this package."""

__all__ = [*_HOME, *old_names.names_of(__name__)]  # noqa: PLE0605 - a list of names


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        return old_names.of(__name__)(name)
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
