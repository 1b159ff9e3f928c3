# SPDX-License-Identifier: Apache-2.0
"""The formats of checkpoints that are read, each behind ``CheckpointFormat``."""

from __future__ import annotations

from mindspeed_ms.formats import huggingface, megatron, mindspore_dirs, own_format, peft, torch_dist
from mindspeed_ms.formats.checkpoint_format import CheckpointFormat

FORMATS: tuple[CheckpointFormat, ...] = (
    own_format.FORMAT,
    peft.FORMAT,
    torch_dist.FORMAT,
    megatron.FORMAT,
    huggingface.FORMAT,
    mindspore_dirs.FORMAT,
)
"""No path belongs to two of them, so their order does not matter; a test keeps it so."""
