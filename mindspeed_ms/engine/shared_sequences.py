# SPDX-License-Identifier: Apache-2.0
"""Sequences that ranks share, for models and loaders that cut them and for those that do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.comm import Group
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.context_parallel import context_parallel, handed
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.micro_batches import MODEL_INPUTS, share_of_batch

_MASK = "attention_mask"
_CUT = ("tokens", "position_ids", "loss_mask")


class SharedSequences:
    """Sees to it that layers get this rank's tokens, whoever cuts the sequences.

    A model that cuts the batch itself, as the guide's does, is told by the length that reaches its
    layers. It gets the parts of all ranks in rank order, so that its cut is this rank's part
    whatever the algorithm: of a ring that is not a contiguous part of the sequence.
    """

    def __init__(self) -> None:
        self._model_cuts = False
        self._group: Group | None = None
        self._is_known = False

    @property
    def _sharers(self) -> Group | None:
        """Ranks that share a sequence, if there are several: those of the run, asked for once."""
        if not self._is_known and parallel_state.model_parallel_is_initialized():
            group = parallel_state.get_context_parallel_group()
            self._group, self._is_known = group if group.size > 1 else None, True
        return self._group

    def own_part(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, cut if a loader handed whole sequences over."""
        tokens = batch.get("tokens")
        if tokens is None or self._sharers is None:
            return batch
        config = get_all_config()
        if tokens.shape[1] != config.model_config.seq_length:
            return batch
        context = context_parallel(config.parallel_config)
        assert context is not None, "several ranks share a sequence"
        kept = {_MASK: batch[_MASK]} if isinstance(batch.get(_MASK), ops.Documents) else {}
        return share_of_batch({**batch, **dict.fromkeys(kept)}, context) | kept

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """The model's output of this rank's part of a batch.

        Parallelism: collective over the context parallel group when the model cuts.
        """
        group, tokens = self._sharers, batch.get("tokens")
        if group is None:
            return model(**batch)
        if tokens is None:
            return model(**_with_something_to_cut(batch, getattr(model, "module", model)))
        expected = handed.current()
        expected.length = tokens.shape[1]
        try:
            if not self._model_cuts:
                try:
                    return model(**batch)
                except handed.CutAgainError:
                    self._model_cuts = True
            return model(**_joined(batch, group))
        finally:
            expected.length = None


class OwnSteps:
    """Watches steps that take their batch and call their model themselves.

    Nothing is mended here: sequences that reach layers whole, cut twice, or cut in contiguous parts
    where a ring has others are refused.
    """

    def __init__(self) -> None:
        self._is_first = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around such a step."""
        if not parallel_state.model_parallel_is_initialized():
            yield
            return
        config, group = get_all_config(), parallel_state.get_context_parallel_group()
        context = context_parallel(config.parallel_config)
        if context is None:
            yield
            return
        expected = handed.current()
        length = config.model_config.seq_length // group.size
        expected.length, expected.may_differ = length, True
        own = tuple(range(group.rank * length, (group.rank + 1) * length))
        is_other = tuple(context.positions(config.model_config.seq_length)) != own
        expected.neighbours = own if self._is_first and is_other and group.rank else None
        self._is_first = False
        try:
            yield
        finally:
            expected.length, expected.may_differ, expected.neighbours = None, False, None


def _with_something_to_cut(batch: dict[str, Any], model: Any) -> dict[str, Any]:
    """Zeros for what a middle stage has no batch of: its layers read none, but its model may cut.

    Raises:
        ValueError: the model would make a mask from the zeros.
    """
    if getattr(model, "eod_mask", None) is not None and batch.get(_MASK) is None:
        raise ValueError(
            "the model makes its mask from tokens (eod), which middle stages of a pipeline do not "
            "read; set reset_attention_mask, whose masks reach every stage"
        )
    config = get_all_config()
    shape = (config.dataset_config.batch_size, config.model_config.seq_length)
    zeros = memory.zeros(shape, mstype.int32)
    missing = [name for name in _CUT if batch.get(name) is None]
    return {**batch, **dict.fromkeys(missing, zeros)}


def _joined(batch: dict[str, Any], group: Group) -> dict[str, Any]:
    """The parts of all ranks behind each other, in rank order; masks stay as they are."""
    return {
        name: _gathered(value, group)
        if isinstance(value, Tensor) and name in MODEL_INPUTS and name != _MASK
        else value
        for name, value in batch.items()
    }


def _gathered(part: Tensor, group: Group) -> Tensor:
    """[b, s] of every rank -> [b, ranks * s]."""
    rows, length = part.shape
    parts = memory.from_numpy(np.empty((group.size, rows, length), memory.as_numpy(part).dtype))
    comm.all_gather_into_tensor(parts, memory.contiguous(part), group)
    whole = memory.as_numpy(parts).transpose(1, 0, 2).reshape(rows, group.size * length)
    return memory.from_numpy(whole)
