"""Initial values of weights, drawn from the shared stream in construction order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from mindspore.nn import Cell

from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.tensor_parallel.random import (
    counting_draws,
    draw_normal,
    seek_initialization,
    words_of_normal,
)


def normal(std: float) -> Callable[[Sequence[int]], np.ndarray]:
    """N(0, std^2)."""
    return lambda shape: draw_normal(tuple(shape), std)


def scaled_normal(config: TransformerConfig) -> Callable[[Sequence[int]], np.ndarray]:
    """N(0, (std / sqrt(2 layers))^2), for layers that write into the residual stream.

    Source: Megatron-LM ``scaled_init_method_normal``.
    """
    return normal(config.init_method_std / math.sqrt(2.0 * config.num_layers))


def normal_after_default(std: float) -> Callable[[Sequence[int]], np.ndarray]:
    """N(0, std^2), drawn after as many numbers that are thrown away.

    ``torch.nn.Embedding`` fills its table once when it is built; Megatron then draws the real
    values, so all later weights depend on both draws.
    """

    def init_method(shape: Sequence[int]) -> np.ndarray:
        draw_normal(tuple(shape), 1.0)
        return draw_normal(tuple(shape), std)

    return init_method


def zeros(shape: Sequence[int]) -> np.ndarray:
    """Zeros, for values that come from elsewhere; nothing is drawn."""
    return np.zeros(tuple(shape), np.float32)


def embedding_draws(config: TransformerConfig, num_tokentypes: int = 0) -> int:
    """Words of the initialisation stream that an embedding takes."""
    words = words_of_normal((config.vocab_size, config.hidden_size))
    tables = [num_tokentypes] if num_tokentypes else []
    if config.has_learned_positions:
        tables.append(config.max_position_embeddings or config.seq_length)
    return words + sum(2 * words_of_normal((rows, config.hidden_size)) for rows in tables)


class StageDraws:
    """Gives the parts of a pipeline stage the initial weights they have in the one-stage model.

    Weights come from one stream in the order of the whole model. A stage that lacks the parts
    before its own moves on to where they would have left the stream. With
    ``use_cpu_initialization`` each stage draws its own parts from a stream of its own, as Megatron
    does, and nothing is skipped.

    Args:
        config: model configuration.
        build_layer: global index -> layer, to learn how much a layer draws.
        num_tokentypes: rows of the embedding's token type table.
    """

    def __init__(
        self,
        config: TransformerConfig,
        build_layer: Callable[[int], Cell],
        num_tokentypes: int = 0,
    ) -> None:
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        self.is_active = stages > 1 and not config.parallel_config.use_cpu_initialization
        if not self.is_active:
            return
        noop = frozenset(config.parallel_config.noop_layers or ())
        words: dict[bool, int] = {}
        self._starts = [embedding_draws(config, num_tokentypes)]
        for index in range(config.num_layers):
            kind = config.has_experts(index)
            if index not in noop and kind not in words:
                with counting_draws() as count:
                    build_layer(index)
                words[kind] = count.words
            self._starts.append(self._starts[-1] + (0 if index in noop else words[kind]))

    def begin_layer(self, index: int) -> None:
        """Move to the weights of a layer, counted over the whole model."""
        if self.is_active:
            seek_initialization(self._starts[index])

    def begin_further_layers(self) -> None:
        """Move to the weights behind the last layer."""
        if self.is_active:
            seek_initialization(self._starts[-1])

    def begin_head(self, words_before: int = 0) -> None:
        """Move to the weights of the head, ``words_before`` behind the last layer."""
        if self.is_active:
            seek_initialization(self._starts[-1] + words_before)
