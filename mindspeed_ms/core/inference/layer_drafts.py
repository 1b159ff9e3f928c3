# SPDX-License-Identifier: Apache-2.0
"""Layers for further tokens as drafts, which steps of the whole model verify.

Legend: B rows, S new tokens of the longest row, K layers for further tokens, v vocabulary.

The layer of depth k makes, at place i, the token k + 2 places on from what depth k - 1 made of the
place and from the token k + 1 places on. The last k places of a depth rest on drafts, so they are
computed again as soon as the tokens are known; what is kept for that are the model's own hidden
states of the last K - 1 places.

Source: DeepSeek-AI, 2024 (V3, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.inference.drafts import Choice, Drafts, Sequences
from mindspeed_ms.core.inference.engine import InferenceEngine, Logits
from mindspeed_ms.ops.attention_call import Places


class LayerDrafts(Drafts):
    """Drafts of the model's own layers for further tokens.

    Args:
        engine: see ``Drafts``.

    Raises:
        ValueError: the model has no layers for further tokens.

    Parallelism: as ``InferenceEngine``; the last pipeline stage drafts.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        super().__init__(engine)
        self.depth = engine.config.mtp_num_layers or 0
        if not self.depth:
            raise ValueError(
                "use_mtp is True, but the model has no layers for further tokens "
                "(num_nextn_predict_layers, mtp_num_layers); leave it out"
            )
        # [m, h] by slot: the last m places; h is 0 on stages without the head.
        self._hidden: dict[int, NDArray[np.float32]] = {}
        self._dtype: mstype.Type = memory.dtype_of(engine.config.compute_dtype)

    def add(self, prompts: Sequence[Sequence[int]]) -> tuple[Places, Logits]:
        """See ``Drafts``."""
        slots = self.engine.cache.take(len(prompts))
        for slot in slots:
            self._hidden.pop(int(slot), None)
        try:
            return slots, self._run(slots, prompts, wants_all=False)
        except BaseException:
            self.engine.free(slots)
            raise

    def fork(self, slots: Places, copies: int) -> Places:
        """See ``Drafts``."""
        result = super().fork(slots, copies)
        for slot, source in zip(result, np.repeat(slots, copies), strict=True):
            self._hidden[int(slot)] = self._hidden[int(source)]
        return result

    def propose(
        self, slots: Places, sequences: Sequences, choose: Choice, most: int
    ) -> list[list[int]]:
        """See ``Drafts``: a token of each depth."""
        cache = self.engine.cache
        stops = cache.lengths[slots].copy()
        kept = [self._hidden[int(slot)] for slot in slots]
        starts = stops - [len(own) for own in kept]
        known = [list(row[start:]) for row, start in zip(sequences, starts, strict=True)]
        hidden: Tensor | None = None
        drafts = np.zeros((len(known), self.depth), np.int64)
        cache.lengths[slots] = starts
        try:
            for depth in range(self.depth):
                ahead = [
                    np.array(row[depth + 1 : depth + 1 + count], np.int32)
                    for row, count in zip(known, stops - starts, strict=True)
                ]
                context = self.engine.context(slots, ahead)
                if depth == 0:
                    hidden = self._laid_out(kept, context)
                hidden, logits = self._drafted(depth, hidden, context)
                drafts[:, depth] = choose(logits)
                for row, token in zip(known, drafts[:, depth], strict=True):
                    row.append(int(token))
        finally:
            cache.lengths[slots] = stops
        for slot, own in zip(slots, kept, strict=True):
            self._hidden[int(slot)] = own[len(own) - min(len(own), self.depth - 1) :]
        return drafts.tolist()

    def verify(self, slots: Places, tokens: Sequence[Sequence[int]]) -> Logits:
        """See ``Drafts``."""
        return self._run(slots, tokens, wants_all=True)

    def keep(self, slots: Places, appended: Places, wanted: Places) -> None:
        """See ``Drafts``."""
        for slot, count in zip(slots, appended - wanted, strict=True):
            own = self._hidden[int(slot)]
            self._hidden[int(slot)] = own[: len(own) - int(count)]
        super().keep(slots, appended, wanted)

    def _run(self, slots: Places, tokens: Sequence[Sequence[int]], wants_all: bool) -> Logits:
        rows = [np.asarray(row, np.int32) for row in tokens]
        context = self.engine.context(slots, rows, wants_all=wants_all, keeps_hidden=True)
        logits = self.engine.run(context)
        new = self._read(context)
        for index, slot in enumerate(slots):
            own = new[: len(rows[index]), index]
            before = self._hidden.get(int(slot))
            self._hidden[int(slot)] = own if before is None else np.concatenate([before, own])
        return logits

    def _read(self, context: InferenceContext) -> NDArray[np.float32]:
        """Hidden states of a context, [S, B, h]."""
        steps, rows = context.shape
        if context.hidden is None:
            return np.zeros((steps, rows, 0), np.float32)
        self._dtype = context.hidden.dtype
        with autograd.inference_mode():
            values = memory.as_numpy(memory.contiguous(ops.cast(context.hidden, mstype.float32)))
        return np.array(values[: steps * rows].reshape(steps, rows, -1))

    def _laid_out(
        self, kept: Sequence[NDArray[np.float32]], context: InferenceContext
    ) -> Tensor | None:
        """[T, 1, h] of a context from the rows of each sequence."""
        width = kept[0].shape[1]
        if not width:
            return None
        steps, rows = context.shape
        whole = np.zeros((context.ids.shape[1], 1, width), np.float32)
        by_step = whole[: steps * rows].reshape(steps, rows, width)
        for index, own in enumerate(kept):
            by_step[: len(own), index] = own
        return ops.cast(memory.from_numpy(whole), self._dtype)

    def _drafted(
        self, depth: int, hidden: Tensor | None, context: InferenceContext
    ) -> tuple[Tensor | None, Logits]:
        """Hidden states of a depth on the last stage, and its logits [B, v] on every rank."""
        model, logits = self.engine.chunks[-1], None
        with autograd.recording(), autograd.inference_mode():
            if hidden is not None:
                ids = memory.from_numpy(context.ids)
                hidden, logits = model.draft(depth, ids, hidden, context)
            return hidden, self.engine.shared(logits, context)[:, : self.engine.vocab_size]
