# SPDX-License-Identifier: Apache-2.0
"""Calls that go on from earlier ones, or show what is between the layers.

Legend: b batch, s tokens of the call, h hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from mindspore import Tensor, mint
from numpy.typing import NDArray

from mindspeed_ms.backend import memory
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.toolkit.messages import unknown_argument
from mindspeed_ms.toolkit.models.batches import as_array
from mindspeed_ms.toolkit.named_members import NamedMembers


@dataclass(frozen=True, slots=True)
class CausalLMOutput(NamedMembers):
    """What ``return_dict=True`` returns, as in ``transformers``."""

    loss: Tensor | None
    """Scalar fp32, if labels were given."""
    logits: Tensor
    """fp32 [b, s, v]."""
    past_key_values: Cache | None = None
    """With ``use_cache``: hand it to the next call, with the new tokens only."""
    hidden_states: tuple[Tensor, ...] | None = None
    """With ``output_hidden_states``: [b, s, h] before each layer, and behind the final norm."""

    @property
    def cache(self) -> Cache | None:
        """``past_key_values``, by its newer name."""
        return self.past_key_values


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks for beside logits or loss."""

    use_cache: bool = False
    past_key_values: Cache | None = None
    output_hidden_states: bool = False
    logits_to_keep: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any], caller: str) -> Asked:
        """From the keywords of a call.

        Raises:
            TypeError: an unknown one.
            ValueError: one that asks for what is not there.
        """
        given = dict(options)
        if given.pop("output_attentions", None):
            raise ValueError(
                "output_attentions is asked for, but attention never holds its probabilities "
                "(they stay in blocks of the kernel); leave it out"
            )
        if "cache" in given:
            given.setdefault("past_key_values", given.pop("cache"))
        for name in given:
            if name not in _ANSWERED:
                own = ("input_ids", "attention_mask", "position_ids", "labels", "return_dict")
                raise TypeError(unknown_argument(caller, name, (*own, *_ANSWERED)))
        cache = given.get("past_key_values")
        if cache is not None and not isinstance(cache, Cache):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}; give what an earlier call with "
                "use_cache=True returned, or None"
            )
        kept = given.get("logits_to_keep") or 0
        if isinstance(kept, bool) or not isinstance(kept, int) or kept < 0:
            raise ValueError(f"logits_to_keep is {kept!r}, but must be a number of last tokens")
        return cls(
            bool(given.get("use_cache")), cache, bool(given.get("output_hidden_states")), kept
        )

    @property
    def is_cached(self) -> bool:
        """Whether the call reads or makes a cache."""
        return self.use_cache or self.past_key_values is not None

    @property
    def needs_names(self) -> bool:
        """Whether the answer has more than one member."""
        return self.output_hidden_states


_ANSWERED = tuple(member.name for member in fields(Asked))


class Cache:
    """Keys and values of the tokens of earlier calls, in the engine's own slots.

    Args:
        engine: the model over its cache.
        rows: b.
    """

    def __init__(self, engine: InferenceEngine, rows: int) -> None:
        self.engine = engine
        self.slots = engine.cache.take(rows)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest row."""
        del layer_idx
        return int(self.engine.cache.lengths[self.slots].max())

    def crop(self, max_length: int) -> None:
        """Forget the tokens behind the first ``max_length``; of the last ``-max_length``."""
        lengths = self.engine.cache.lengths[self.slots]
        kept = np.minimum(lengths, max_length) if max_length >= 0 else lengths + max_length
        self.engine.cache.truncate(self.slots, np.maximum(kept, 0))

    def reorder_cache(self, beam_idx: Any) -> None:
        """Let row i go on from what row ``beam_idx[i]`` holds."""
        self.engine.cache.reorder(self.slots, as_array(beam_idx, "beam_idx")[0].astype(np.int64))

    def extend(self, ids: NDArray, seen: NDArray) -> NDArray[np.float32]:
        """Logits [b, s, v] behind new tokens; 0 where a token is not seen.

        Args:
            ids: [b, s].
            seen: [b, s], False for padding.

        Raises:
            ValueError: other rows than before, or a row without new tokens.
        """
        if len(ids) != len(self.slots):
            raise ValueError(f"past_key_values hold {len(self.slots)} rows, input_ids {len(ids)}")
        if not seen.any(axis=1).all():
            row = int(np.flatnonzero(~seen.any(axis=1))[0])
            raise ValueError(f"row {row} has no new token: the attention_mask hides all of them")
        rows = [row[mask] for row, mask in zip(ids, seen, strict=True)]
        found = self.engine.extend(self.slots, rows, wants_all=True)
        logits = np.zeros((*ids.shape, found.shape[-1]), np.float32)
        for row, mask in enumerate(seen):
            logits[row, mask] = found[: mask.sum(), row]
        return logits


def cached(cache: Cache, input_ids: Any, attention_mask: Any) -> NDArray[np.float32]:
    """Logits [b, s, v] of tokens behind those of a cache.

    Args:
        cache: changed.
        input_ids: [b, s], the new tokens.
        attention_mask: of the new tokens, or of those before, too.

    Raises:
        ValueError: shapes that do not fit.
    """
    ids = as_array(input_ids, "input_ids")
    seen = np.ones(ids.shape, bool)
    if attention_mask is not None:
        mask = as_array(attention_mask, "attention_mask") != 0
        if mask.shape[0] != len(ids) or mask.shape[1] < ids.shape[1]:
            raise ValueError(
                f"attention_mask has shape {list(mask.shape)}, but input_ids {list(ids.shape)}; "
                "it covers them, and may cover the tokens of earlier calls before"
            )
        seen = mask[:, -ids.shape[1] :]
    return cache.extend(ids, seen)


@contextmanager
def watched(chunks: Sequence[GPTModel], is_wanted: bool) -> Iterator[list[Tensor]]:
    """Context in which a forward pass notes what enters each layer, and what leaves the last norm.

    Yields:
        The tensors as the engine has them, [s(/p), b, h].

    Raises:
        ValueError: the layers are not all on this rank.
    """
    states: list[Tensor] = []
    if not is_wanted:
        yield states
        return
    if len(chunks) > 1 or parallel_state.get_pipeline_model_parallel_world_size() > 1:
        raise ValueError("output_hidden_states needs all layers on a rank; use no pipeline")
    encoder = chunks[0].language_model.encoder

    def note_entry(cell: object, inputs: tuple[Any, ...]) -> None:
        states.append(inputs[0])

    def note_exit(cell: object, inputs: object, output: Tensor) -> None:
        states.append(output)

    hooks = [layer.register_forward_pre_hook(note_entry) for layer in encoder.layers]
    assert encoder.final_norm is not None, "the last stage has it"
    hooks.append(encoder.final_norm.register_forward_hook(note_exit))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def by_batch(states: Sequence[Tensor], config: AllConfig, length: int) -> tuple[Tensor, ...]:
    """Noted states as users have them, [b, s, h], without filled up tokens."""
    is_cut = config.parallel_config.sequence_parallel

    def whole(state: Tensor) -> Tensor:
        if is_cut:
            state = mappings.gather_from_sequence_parallel_region(state, False)
        return memory.contiguous(mint.transpose(state, 0, 1)[:, :length])

    return tuple(map(whole, states))
