# SPDX-License-Identifier: Apache-2.0
"""Arguments of public signatures that nothing here serves: they are refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "encoder_output": "decoder-only models have no encoder to attend to",
        "retriever_input_ids": "there is no retriever",
        "retriever_position_ids": "there is no retriever",
        "retriever_attn_mask": "there is no retriever",
    }
)


def refuse_unserved(**arguments: object) -> None:
    """Raise for each argument that was given.

    Raises:
        ValueError: one is not None.
    """
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name} is given, but {REASONS[name]}; leave it None")
