# SPDX-License-Identifier: Apache-2.0
"""The one table of flags.

Parser, help, mapping to the configuration and reports are all generated from it.
"""

from __future__ import annotations

from mindspeed_ms.training.flags import (
    adapters,
    checkpoints,
    datasets,
    distillation,
    experts,
    finetuning,
    forks,
    layout,
    model,
    more_forks,
    optimizer,
    other_hardware,
    other_programs,
    published_models,
    refused,
    run,
    sparse_attention,
    token_lengths,
    weighted_splits,
)
from mindspeed_ms.training.flags.row import EntryPoint, Field, Flag, NoEffect, Refused

ROWS: tuple[Flag, ...] = (
    *run.FIRST,
    *model.ROWS,
    *run.ROWS,
    *optimizer.ROWS,
    *layout.ROWS,
    *experts.ROWS,
    *sparse_attention.ROWS,
    *datasets.ROWS,
    *checkpoints.ROWS,
    *distillation.ROWS,
    *adapters.ROWS,
    *other_hardware.ROWS,
    *other_programs.ROWS,
    *published_models.ROWS,
    *finetuning.ROWS,
    *forks.ROWS,
    *more_forks.ROWS,
    *token_lengths.ROWS,
    *weighted_splits.ROWS,
    *refused.ROWS,
)
"""Every flag, in the order of help."""


def _by_name(rows: tuple[Flag, ...]) -> dict[str, Flag]:
    table: dict[str, Flag] = {}
    for row in rows:
        for name in row.names:
            if name in table:
                raise AssertionError(f"the flag table holds {name} twice")
            table[name] = row
    return table


BY_NAME: dict[str, Flag] = _by_name(ROWS)
"""Every spelling -> its row."""

__all__ = ["BY_NAME", "ROWS", "EntryPoint", "Field", "Flag", "NoEffect", "Refused"]
