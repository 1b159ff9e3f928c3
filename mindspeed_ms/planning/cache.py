# SPDX-License-Identifier: Apache-2.0
"""Bytes of the key/value cache that text generation keeps (``core/inference/kv_cache.py``)."""

from __future__ import annotations

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.dtypes import dtype_bytes
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.planning.parameters import model_spec


def cache_bytes_per_token(config: AllConfig, stage: int) -> int:
    """Bytes that a token of a sequence leaves on a rank of a pipeline stage.

    Keys and values have the compute type; tensor parallel ranks share out their heads (at least one
    on each), and each keeps all narrow vectors of latent attention and all keys of an indexer.

    Args:
        config: the configuration.
        stage: number of the stage.
    """
    placement = layer_placement(config.model_config, config.parallel_config)
    spec = model_spec(config)
    ranks, numbers = config.parallel_config.tensor_model_parallel_size, 0
    if spec.query is not None and stage == placement.num_stages - 1:
        numbers = spec.query.layer.attention.cached_numbers(ranks)
    for chunk in range(placement.num_chunks):
        for index in placement.layers_of(stage, chunk):
            layer = spec.layers[index]
            if layer is not None:
                numbers += layer.attention.cached_numbers(ranks)
    return numbers * dtype_bytes(config.model_config.compute_dtype)
