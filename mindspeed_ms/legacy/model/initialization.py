"""Initial values of weights, drawn from the shared stream in construction order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mindspeed_ms.core.config import TransformerConfig
from mindspeed_ms.core.tensor_parallel.random import draw_normal


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
