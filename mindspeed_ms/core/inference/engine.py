# SPDX-License-Identifier: Apache-2.0
"""Steps of a model over a cache of keys and values, for any layout of ranks.

Legend: B rows of a step, v tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.inference.kv_cache import KVCache
from mindspeed_ms.ops.attention_call import Places

Logits = NDArray[np.float32]
Decoder = Callable[[InferenceContext, Logits | None], Logits]
"""The native form of a chunk: see ``legacy/model/decoding.py``."""
Step = Callable[[Tensor | None], Tensor]
MOST_ROWS = 16
"""New tokens of a call that weights as eight bits are for."""
PROBE = 12
"""Tokens of the text by which a native form is compared with the Cells."""


class InferenceEngine:
    """A model that goes on with sequences, each in a slot of a cache.

    ``add`` takes in new sequences, ``step`` gives every one of some sequences one more token,
    ``free`` gives their slots back; sequences come and go between steps. All return the logits that
    follow, the same on every rank.

    >>> engine = InferenceEngine([model], config)          # doctest: +SKIP
    >>> slots, logits = engine.add([[5, 3], [7]])          # doctest: +SKIP
    >>> logits = engine.step(slots, logits.argmax(-1))     # doctest: +SKIP
    >>> engine.free(slots)                                 # doctest: +SKIP

    Args:
        chunks: the model of this rank, one Cell per virtual pipeline stage.
        config: its configuration.
        vocab_size: v, default the configuration's, which may be padded.
        max_length: tokens a sequence may have, default as many as the model has positions for.
        num_slots: sequences that are expected at a time; more are taken in all the same.
        in_int8: steps read copies of the weights of linear layers as eight bits, with a factor per
            row. Prompts are read with the weights as they are.

    Raises:
        ValueError: a layout that cannot generate; ``in_int8`` of a model without a native form.

    Parallelism: tensor, pipeline, expert and data parallel ranks call everything alike and with
        the same arguments. Steps are collective over the model's ranks.
    """

    def __init__(
        self,
        chunks: Sequence[Cell],
        config: TransformerConfig,
        *,
        vocab_size: int | None = None,
        max_length: int | None = None,
        num_slots: int = 1,
        in_int8: bool = False,
    ) -> None:
        refuse_layout(config)
        self.chunks = [getattr(chunk, "module", chunk) for chunk in chunks]
        self.config = config
        self.vocab_size = vocab_size or config.vocab_size
        self.max_length = _smallest(max_length, position_limit(config))
        self.cache = KVCache(num_slots)
        tensor = parallel_state.get_tensor_model_parallel_group()
        self._pipeline = parallel_state.get_pipeline_model_parallel_group()
        is_cut = config.parallel_config.sequence_parallel and tensor.size > 1
        self._tensor, self._parts = tensor, tensor.size if is_cut else 1
        self._decoders: list[Decoder] | None = None
        self._may_decode = True
        is_whole = len(self.chunks) == 1 and self._pipeline.size == 1 and tensor.size == 1
        self._turns_at = turning_length(config)
        self._in_int8 = in_int8
        if in_int8 and not (is_whole and _forms(self.chunks)):
            raise ValueError(
                "weights as eight bits are for models on one rank that have a native form "
                "(ops/cpu); leave decodes_in_int8 (--int8) out"
            )
        # Setting walks through all Cells, which takes as long as a layer does.
        self._were_training = [chunk for chunk in self.chunks if chunk.training]
        for chunk in self._were_training:
            chunk.set_train(False)

    def __enter__(self) -> InferenceEngine:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let the model train again, if it did."""
        for chunk in self._were_training:
            chunk.set_train(True)

    def add(self, prompts: Sequence[Sequence[int]]) -> tuple[Places, Logits]:
        """Take in sequences of any lengths.

        Args:
            prompts: ids, at least one per sequence.

        Returns:
            Slots [B], and logits [B, v] behind the last token of each.
        """
        slots = self.cache.take(len(prompts))
        try:
            return slots, self.extend(slots, prompts)
        except BaseException:
            self.cache.free(slots)
            raise

    def step(self, slots: Places, tokens: Sequence[int] | NDArray[np.integer]) -> Logits:
        """Give each of some sequences one more token: logits [B, v] behind it."""
        return self.extend(slots, np.asarray(tokens, np.int32)[:, None])

    def extend(
        self,
        slots: Places,
        tokens: Sequence[Sequence[int] | NDArray[np.integer]] | NDArray[np.int32],
        wants_all: bool = False,
    ) -> Logits:
        """Append tokens to sequences.

        Args:
            slots: [B].
            tokens: new ids of each sequence, at least one.
            wants_all: return the logits behind every new token, [S, B, v] for S tokens of the
                longest row; those behind the last token of the shorter ones mean nothing.

        Returns:
            Logits [B, v] behind the last token of each.

        Raises:
            ValueError: a sequence without new tokens, or with more than the model has positions
                for; ids outside of the vocabulary.
        """
        rows = [np.asarray(row, np.int32) for row in tokens]
        return self.run(self.context(slots, rows, wants_all=wants_all))

    def context(
        self,
        slots: Places,
        tokens: Sequence[NDArray[np.int32]],
        *,
        wants_all: bool = False,
        keeps_hidden: bool = False,
    ) -> InferenceContext:
        """The places of new tokens; see ``InferenceContext``.

        Raises:
            ValueError: as ``extend``.
        """
        self._check(slots, tokens)
        return InferenceContext(self.cache, slots, tokens, self._parts, wants_all, keeps_hidden)

    def run(self, context: InferenceContext) -> Logits:
        """Append the tokens of a context: logits as ``extend`` returns them."""
        if self._turns_at is not None:
            self._turn_again(context, self._turns_at)
        decoders = self._native_forms(context)
        if decoders is None:
            logits = self._through_cells(context)
        else:
            logits = self._natively(context, decoders)
        self.cache.advance(context.slots, context.counts)
        logits = logits[:, : self.vocab_size]
        return logits.reshape(*context.shape, -1) if context.wants_all else logits

    def _turn_again(self, context: InferenceContext, limit: int) -> None:
        """Rotate the keys of sequences anew that become longer than the short factors are for.

        Source: ``transformers`` Phi3 ``prepare_inputs_for_generation`` (when a cache is dropped).
        """
        cache, slots = self.cache, context.slots
        before, after = cache.lengths[slots], cache.lengths[slots] + context.counts
        crossing = (before > 0) & (before <= limit) & (after > limit)
        if crossing.any():
            own = slots[crossing]
            rows = [cache.tokens(slot) for slot in own]
            cache.truncate(own, 0)
            again = InferenceContext(cache, own, rows, self._parts, rotated_as=after[crossing])
            self._through_cells(again)
            cache.advance(own, again.counts)
        cache.note_tokens(slots, context.by_step)

    def _through_cells(self, context: InferenceContext) -> Logits:
        with autograd.recording(), autograd.inference_mode():
            return self.shared(self._run(context), context)

    def _natively(self, context: InferenceContext, decoders: Sequence[Decoder]) -> Logits:
        if self._pipeline.size == 1:
            return decoders[0](context, None)

        def step_of(decoder: Decoder) -> Step:
            return lambda received: memory.from_numpy(
                decoder(context, None if received is None else memory.as_numpy(received))
            )

        shape = (int(context.counts.sum()), self.config.hidden_size)
        output = self._pass_on([step_of(decoder) for decoder in decoders], shape, mstype.float32)
        return self.shared(output, context)

    def _native_forms(self, context: InferenceContext) -> list[Decoder] | None:
        """The chunks' native forms, if all ranks of the model have them for such a context."""
        if self._may_decode and self._decoders is None:
            self._decoders = _forms(self.chunks)
            model, has_forms = self.chunks[0], self._all_say(bool(self._decoders))
            if has_forms and not hasattr(model, "decodes_alike"):
                model.decodes_alike = self._all_say(self._agree(self._decoders))
            self._may_decode = has_forms and model.decodes_alike
            if self._in_int8:
                self._decoders = _forms(self.chunks, in_int8=True)
        is_prompt = self._in_int8 and context.counts.sum() > MOST_ROWS
        return self._decoders if self._may_decode and not is_prompt else None

    def _all_say(self, yes: bool) -> bool:
        """Whether all ranks of the model say yes."""
        for group in (self._tensor, self._pipeline):
            yes = all(comm.all_gather_object(yes, group))
        return yes

    def _agree(self, decoders: Sequence[Decoder]) -> bool:
        """Whether native forms compute what the Cells do: they may not know a part of the model.

        Both go on with a text of their own, so that the answer, and with it every logit that
        follows, does not depend on what the model is asked.
        """
        length = PROBE if self.max_length is None else min(PROBE, self.max_length)
        ids = np.linspace(0, self.config.vocab_size - 1, length).astype(np.int32)
        cache = KVCache()
        slots = cache.take(1)
        if length > 1:
            context = InferenceContext(cache, slots, [ids[:-1]], self._parts)
            self._through_cells(context)
            cache.advance(slots, context.counts)
        context = InferenceContext(cache, slots, [ids[-1:]], self._parts)
        found, wanted = self._natively(context, decoders), self._through_cells(context)
        error = np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-6)
        is_single = memory.dtype_of(self.config.compute_dtype) == mstype.float32
        return bool(error < (2e-4 if is_single else 5e-2))

    def free(self, slots: Sequence[int] | Places) -> None:
        """Give the slots of sequences back."""
        self.cache.free(slots)

    def _check(self, slots: Places, rows: Sequence[NDArray[np.int32]]) -> None:
        lengths = self.cache.lengths[slots] + [len(row) for row in rows]
        if self.max_length is not None and lengths.max() > self.max_length:
            raise ValueError(
                f"a sequence would have {lengths.max()} tokens, but the model has "
                f"{self.max_length} positions; shorten the prompt or ask for fewer new tokens"
            )
        for row in rows:
            wrong = row[(row < 0) | (row >= self.config.vocab_size)]
            if len(wrong):
                raise ValueError(
                    f"token {wrong[0]} is outside of the vocabulary of {self.config.vocab_size}"
                )

    def _run(self, context: InferenceContext) -> Tensor:
        """What the last of this rank's chunks returns."""
        ids = memory.from_numpy(context.ids)
        positions = memory.from_numpy(context.positions.astype(np.int32)[None])

        def step_of(model: Cell) -> Step:
            def step(received: Tensor | None) -> Tensor:
                if received is not None:
                    model.set_input_tensor(received)
                return model(ids, positions, None, inference_params=context)

            return step

        shape = (context.ids.shape[1] // self._parts, 1, self.config.hidden_size)
        dtype = memory.dtype_of(self.config.residual_dtype)
        return self._pass_on([step_of(model) for model in self.chunks], shape, dtype)

    def _pass_on(self, steps: Sequence[Step], shape: tuple[int, ...], dtype: mstype.Type) -> Tensor:
        """What the last of this rank's chunks returns.

        Args:
            steps: what each chunk makes of what the one before returned.
            shape: of what goes from chunk to chunk.
            dtype: its type.
        """
        group, output = self._pipeline, None
        for model, step in zip(self.chunks, steps, strict=True):
            received = None
            if not model.pre_process:
                received = memory.empty(shape, dtype)
                comm.irecv(received, _neighbour(group, -1), group).wait()
            output = step(received)
            if not model.post_process:
                comm.isend(memory.contiguous(output), _neighbour(group, 1), group).wait()
        assert output is not None, "every rank has a chunk"
        return output

    def shared(self, output: Tensor | None, context: InferenceContext) -> Logits:
        """Logits [n, padded v] on every rank, from those of the last stage."""
        group = self._pipeline
        if group.size == 1:
            assert output is not None, "the only stage has the head"
            return _in_fp32(output)
        steps, rows = context.shape
        count = steps * rows if context.wants_all else rows
        if output is not None and self.chunks[-1].post_process:
            logits = memory.from_numpy(np.ascontiguousarray(_in_fp32(output)))
        else:
            logits = memory.empty((count, self.config.vocab_size), mstype.float32)
        comm.broadcast(logits, group.ranks[-1], group=group)
        return memory.as_numpy(logits)


def refuse_layout(config: TransformerConfig) -> None:
    """Refuse what cannot generate.

    Raises:
        ValueError: context parallelism, or attention to later tokens.
    """
    parallel = config.parallel_config
    if parallel.context_parallel_size > 1:
        raise ValueError(
            f"context_parallel_size is {parallel.context_parallel_size}; text generation needs 1: "
            "its cache is not shared out along the sequence"
        )
    if parallel.attention_mask_type == "full":
        raise ValueError(
            "attention_mask_type is full; text is generated by models whose tokens see earlier "
            "ones only"
        )


def _forms(chunks: Sequence[Cell], in_int8: bool = False) -> list[Decoder]:
    """The native forms of chunks; none where one of them has none."""
    found = [chunk.decoder(in_int8) if hasattr(chunk, "decoder") else None for chunk in chunks]
    forms = [form for form in found if form is not None]
    return forms if len(forms) == len(found) else []


def turning_length(config: TransformerConfig) -> int | None:
    """Tokens up to which a sequence is rotated by the short factors of longrope; None: no such."""
    stretching = config.rope_scaling
    if stretching.rope_type != "longrope":
        return None
    longest = config.max_position_embeddings or config.seq_length
    return stretching.original_max_position_embeddings or longest


def position_limit(config: TransformerConfig) -> int | None:
    """Rows of the table of positions; None for a model without one."""
    if not config.has_learned_positions:
        return None
    return config.max_position_embeddings or config.seq_length


def _smallest(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _neighbour(group: Group, step: int) -> int:
    """Global rank of the stage before or behind, in a ring."""
    return group.ranks[(group.rank + step) % group.size]


def _in_fp32(logits: Tensor) -> Logits:
    """[n, 1, v] -> an array [n, v]."""
    array = memory.as_numpy(memory.contiguous(ops.cast(logits, mstype.float32)))
    return array.reshape(array.shape[0], array.shape[-1])
