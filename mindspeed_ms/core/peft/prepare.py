# SPDX-License-Identifier: Apache-2.0
"""A model that was built with adapters, made ready to be trained: frozen, and with values."""

from __future__ import annotations

import zlib

import numpy as np
from mindspore import Parameter
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.core.parameter import named_parameters, shard_of
from mindspeed_ms.core.peft.magnitude import set_magnitudes
from mindspeed_ms.core.tensor_parallel.random import initialization_seed, is_counting_draws
from mindspeed_ms.models.adapter import is_adapter_name
from mindspeed_ms.models.model import ModelSpec


def prepare(model: Cell, spec: ModelSpec, prefix: str = "") -> None:
    """Draw the first values of adapters, and freeze all else.

    Every rank draws the whole A of an adapter from a stream of its own, by the seed of initial
    weights and its name; so values depend neither on the layout nor on other parameters.

    Args:
        model: the part of the model on this rank.
        spec: the model.
        prefix: what its names have before those of ``model``.
    """
    for own_name, param in model.parameters_and_names():
        name = prefix + own_name
        if is_adapter_name(name):
            bound = spec.by_name[name].init.bound
            if bound is not None:
                _draw(param, name, bound)
    freeze(model)


def freeze(model: Cell) -> None:
    """Freeze all but the adapters, whose magnitudes are the lengths that the base has now."""
    for name, param in model.parameters_and_names():
        if not is_adapter_name(name):  # what balances experts, too: the base stays as it is
            param.requires_grad = False
            param.is_frozen = True
    if not is_counting_draws():  # else whoever fills the weights takes their lengths
        set_magnitudes(model)


def _draw(param: Parameter, name: str, bound: float) -> None:
    """Uniform values, as PEFT's kaiming_uniform with a = sqrt(5) has them."""
    shard = shard_of(param)
    stream = np.random.Generator(
        np.random.Philox(key=[initialization_seed(), zlib.crc32(name.encode())])
    )
    whole = stream.uniform(-bound, bound, shard.full_shape(param.shape)).astype(np.float32)
    part = np.ascontiguousarray(shard.local_slice(whole))
    ops.copy_cast_(param, memory.from_numpy(part))


def is_prepared(model: Cell) -> bool:
    """Whether a part of a model was built for adapters: everything else in it is frozen."""
    return all(is_adapter_name(name) for name, _ in named_parameters(model))
