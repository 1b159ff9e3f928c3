# SPDX-License-Identifier: Apache-2.0
"""Normalisation layers over the last dimension. Legend: h hidden size.

The result has the type of the weights: an fp32 residual stream enters the layers in their own type.
"""

from __future__ import annotations

from functools import partial
from typing import TypeAlias

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.parameter import InitMethod, ShardSpec, create_parameter
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.models.gpt import norm_spec
from mindspeed_ms.models.part import NormSpec


class LayerNorm(Cell):
    """y = (x - mean) / sqrt(var + eps) * gamma + beta.

    Args:
        dim: size of the last dimension.
        eps: added to the variance.
        scale: initial value of gamma.
        zero_centered: keep gamma - 1 as the parameter.
        only_multiplies: there is no beta.
        sequence_parallel: inputs hold a part of the sequence, so gradients are partial sums.
        params_dtype: type of gamma and beta.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        *,
        scale: float = 1.0,
        zero_centered: bool = False,
        only_multiplies: bool = False,
        sequence_parallel: bool = False,
        params_dtype: str | mstype.Type = "float32",
    ) -> None:
        super().__init__()
        self.eps, self.zero_centered = eps, zero_centered
        shard = ShardSpec(partial_gradient=sequence_parallel)
        self.gamma = create_parameter(
            (dim,), _constant(scale - zero_centered), dtype=params_dtype, name="gamma", shard=shard
        )
        self.beta = None
        if not only_multiplies:
            self.beta = create_parameter(
                (dim,), _constant(0.0), dtype=params_dtype, name="beta", shard=shard
            )

    def construct(self, x: Tensor) -> Tensor:
        """[..., h] -> [..., h]."""
        gamma = self.gamma + 1 if self.zero_centered else self.gamma
        beta = memory.zeros(self.gamma.shape, x.dtype) if self.beta is None else self.beta
        gamma, beta = ops.cast(gamma, x.dtype), ops.cast(beta, x.dtype)
        return ops.cast(ops.layer_norm(x, gamma, beta, self.eps), self.gamma.dtype)


class RMSNorm(Cell):
    """y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019).

    Args:
        dim: size of the last dimension.
        eps: added to the mean square.
        scale: initial value of the weight.
        zero_centered: keep the weight - 1 as the parameter.
        sequence_parallel: inputs hold a part of the sequence, so gradients are partial sums.
        params_dtype: type of the weight.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        *,
        scale: float = 1.0,
        zero_centered: bool = False,
        sequence_parallel: bool = False,
        params_dtype: str | mstype.Type = "float32",
    ) -> None:
        super().__init__()
        self.eps, self.zero_centered = eps, zero_centered
        self.weight = create_parameter(
            (dim,),
            _constant(scale - zero_centered),
            dtype=params_dtype,
            name="weight",
            shard=ShardSpec(partial_gradient=sequence_parallel),
        )

    def construct(self, x: Tensor) -> Tensor:
        """[..., h] -> [..., h]."""
        weight = self.weight + 1 if self.zero_centered else self.weight
        if x.dtype == weight.dtype:
            return ops.rms_norm(x, weight, self.eps)
        normed = ops.rms_norm(x, ops.cast(weight, x.dtype), self.eps)
        return ops.cast(normed, self.weight.dtype)


class NormOfHeads(Cell):
    """A norm of heads, each with factors of its own; computed in fp32.

    Args:
        spec: of the heads of all ranks.
        group: ranks that share out the heads. All hold the factors of all heads.
    """

    def __init__(self, spec: NormSpec, group: Group | None) -> None:
        super().__init__()
        self.spec, self.group = spec, group
        name = "gamma" if spec.kind == "LayerNorm" else "weight"
        weight = create_parameter(
            (spec.heads * spec.dim,),
            _constant(spec.scale - spec.zero_centered),
            dtype=spec.dtype,
            name=name,
            shard=ShardSpec(),
        )
        setattr(self, name, weight)

    def construct(self, x: Tensor) -> Tensor:
        """[..., heads of this rank, D] -> the same in fp32."""
        weight = self.gamma if self.spec.kind == "LayerNorm" else self.weight
        wide = ops.cast(weight.reshape((1, -1)), mstype.float32)
        own = mappings.scatter_to_tensor_model_parallel_region(wide, self.group)
        x = ops.cast(x, mstype.float32)
        ones = memory.full((self.spec.dim,), 1.0, x.dtype)
        if self.spec.kind == "LayerNorm":
            normed = ops.layer_norm(x, ones, memory.zeros(ones.shape, x.dtype), self.spec.eps)
        else:
            normed = ops.rms_norm(x, ones, self.spec.eps)
        factors = own.reshape((-1, self.spec.dim))
        return normed * (factors + 1 if self.spec.zero_centered else factors)


class PlainLayerNorm(Cell):
    """y = (x - mean) / sqrt(var + eps), without parameters.

    Args:
        eps: added to the variance.
        dtype: type of the result.
    """

    def __init__(self, eps: float, dtype: str | mstype.Type) -> None:
        super().__init__()
        self.eps, self.dtype = eps, memory.dtype_of(dtype)

    def construct(self, x: Tensor) -> Tensor:
        """[..., h] -> [..., h]."""
        ones = memory.full((x.shape[-1],), 1.0, x.dtype)
        normed = ops.layer_norm(x, ones, memory.zeros(ones.shape, x.dtype), self.eps)
        return ops.cast(normed, self.dtype)


Norm: TypeAlias = LayerNorm | RMSNorm | NormOfHeads | PlainLayerNorm


def norm_from_spec(spec: NormSpec, config: TransformerConfig, group: Group | None = None) -> Norm:
    """The normalisation of a description; see ``NormOfHeads`` for the group."""
    if spec.heads > 1:
        return NormOfHeads(spec, group)
    if not spec.has_factor:
        return PlainLayerNorm(spec.eps, spec.dtype)
    is_layer_norm = spec.kind == "LayerNorm"
    kind = partial(LayerNorm, only_multiplies=spec.only_multiplies) if is_layer_norm else RMSNorm
    return kind(
        spec.dim,
        spec.eps,
        scale=spec.scale,
        zero_centered=spec.zero_centered,
        sequence_parallel=spec.partial == "always"
        or (spec.partial == "sequence" and config.parallel_config.sequence_parallel),
        params_dtype=spec.dtype,
    )


def get_norm(config: TransformerConfig) -> Norm:
    """The normalisation of hidden states that a model configuration asks for.

    ``FusedRMSNorm`` is the same layer: which kernel computes it is chosen by ``ops``.
    """
    return norm_from_spec(norm_spec(config), config)


def _constant(value: float) -> InitMethod:
    return lambda shape: np.full(shape, value, np.float32)
