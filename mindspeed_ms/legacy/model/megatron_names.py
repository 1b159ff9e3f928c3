# SPDX-License-Identifier: Apache-2.0
"""Weights of a whole model under Megatron-core's names, put into the part of it that is here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.core.parameter import named_buffers, named_parameters, shard_of
from mindspeed_ms.formats.names import current_name
from mindspeed_ms.models.gpt import gpt_spec
from mindspeed_ms.models.model import EMBEDDING


def load_megatron_parameters(model: Cell, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill a model from unsharded arrays under Megatron-core's names; each rank takes its part.

    The model may be one chunk of a pipeline stage with some of the experts: arrays of what lies
    elsewhere are left alone. A copy of the embedding gets the embedding's values. Experts may be
    named as single blocks or as grouped ones.

    Raises:
        ValueError: names that do not correspond one to one, or a shape that differs.
    """
    spec = gpt_spec(model.config)
    given = {current_name(name): values for name, values in arrays.items()}
    held = dict([*named_parameters(model), *named_buffers(model)])
    sources = {name: EMBEDDING if shard_of(param).shared else name for name, param in held.items()}
    wanted = {spec.by_name[name].megatron_name for name in sources.values()}
    missing, unexpected = wanted - given.keys(), given.keys() - spec.by_megatron_name.keys()
    if missing or unexpected:
        raise ValueError(
            f"weights and model do not correspond; missing: {sorted(missing)}, unexpected: "
            f"{sorted(unexpected)}: check the model's configuration"
        )
    for name, param in held.items():
        source = spec.by_name[sources[name]]
        values = given[source.megatron_name]
        if values.shape != source.shape:
            raise ValueError(
                f"{source.megatron_name} has shape {values.shape}, the model needs {source.shape}; "
                "check the model's configuration"
            )
        part = shard_of(param).local_slice(values.astype(np.float32))
        ops.copy_cast_(param, memory.from_numpy(np.ascontiguousarray(part)))


def megatron_names(model: Cell) -> dict[str, str]:
    """Name here -> name in Megatron-core, of the parameters of a model or of a chunk of it."""
    spec = gpt_spec(model.config)
    named = {**spec.by_name, spec.tied_head.name: spec.tied_head} if spec.is_tied else spec.by_name
    held = [*named_parameters(model), *named_buffers(model)]
    return {name: named[name].megatron_name for name, _ in held}
