# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts that begins with the weights of a dense model (He et al., 2024).

Legend: E experts, G pieces that a dense block is cut into, f width of an expert; the dense block is
G f wide. Expert e gets piece e mod G.

Source: Megatron-LM ``upcycling_utils`` (cuts, scales, router).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from mindspore import Parameter

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.config import AllConfig, TransformerConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core.dist_checkpointing.opener import find_together, open_together
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.parameter import named_buffers, named_parameters, shard_of
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.formats.catalog import Catalog, TensorReader
from mindspeed_ms.formats.find import Found
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.model import EMBEDDING, HEAD

_EXPERT = re.compile(
    r"(.*\.mlp)\.experts\.local_experts\.(\d+)\.((?:mapping|projection)\.(?:weight|bias))"
)
_KINDS = 4
"""Of tensors of an expert, as ``_EXPERT`` names them."""


def dense_config(config: AllConfig) -> AllConfig:
    """The dense model that a mixture of experts is made from."""
    sections = config.to_dict()
    moe = config.moe_config
    width = moe.moe_ffn_hidden_size or config.model_config.ffn_hidden_size or 0
    sections["model_config"]["ffn_hidden_size"] = width * moe.moe_upcycling_granularity
    sections["moe_config"] = {}
    sections["parallel_config"] |= {
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": None,
    }
    return assemble(sections)


def weight_scale(config: TransformerConfig) -> float:
    """Factor of both matrices of an expert, so that chosen experts add up to the dense block."""
    moe = config.moe_config
    pieces, activation = moe.moe_upcycling_granularity, config.hidden_act
    scale = float(pieces)
    if moe.moe_router_pre_softmax:  # weights are shares of all experts
        scale = moe.num_experts * pieces / moe.moe_router_topk
    is_cubic = bool(config.gated_linear_unit) or activation == "squared_relu"
    return scale ** (1.0 / 3.0 if is_cubic else 0.5)


def expert_part(
    name: str, dense: np.ndarray, expert: int, pieces: int, scale: float, is_gated: bool
) -> np.ndarray:
    """What an expert gets of a dense tensor.

    Args:
        name: end of its name, as ``mapping.weight``.
        dense: all of it.
        expert: number.
        pieces: G.
        scale: see ``weight_scale``.
        is_gated: the first matrix is [gate; up], each cut by itself.
    """
    if name == "projection.bias":
        return dense
    if name == "projection.weight":
        return np.split(dense, pieces, axis=1)[expert % pieces] * np.float32(scale)
    halves = np.split(dense, 2) if is_gated else [dense]
    mine = np.concatenate([np.split(half, pieces)[expert % pieces] for half in halves])
    return mine * np.float32(scale)


def upcycle(
    config: AllConfig, models: Sequence[DistributedDataParallel], found: Found | None
) -> None:
    """Fill a model with experts from the checkpoint of a dense one.

    The rows of a router stay as they were drawn, the first E / G of them G times each, so that the
    pieces of a block are chosen together.

    Raises:
        ValueError: there are no experts, G does not divide them, the checkpoint does not fit, or
            the folder that the run saves to holds one.
    """
    moe, training = config.moe_config, config.training_config
    pieces = moe.moe_upcycling_granularity
    if not moe.is_moe or moe.num_experts % pieces:
        raise ValueError(
            f"moe_use_upcycling makes num_experts ({moe.num_experts}) from "
            f"moe_upcycling_granularity ({pieces}) pieces of a dense block; give a number of "
            "experts that it divides"
        )
    if found is None or config.parallel_config.zero_level == "z3":
        raise ValueError(
            "moe_use_upcycling reads a dense model (--load) into weights that every rank holds; "
            "name one, and use another zero_level than z3"
        )
    if training.save_checkpoints and find_together(Path(training.output_dir), None) is not None:
        raise ValueError(
            f"{training.output_dir} holds a checkpoint already; leave moe_use_upcycling out to go "
            "on with it, or save to another folder"
        )
    dense = gpt_spec(dense_config(config).model_config)
    catalog = open_together(found, lambda common: dense)
    with TensorReader() as reader:
        read = partial(_read, reader, catalog)
        read_block = lru_cache(maxsize=_KINDS)(read)  # expert after expert is made of the same
        for model in models:
            for name, param in [*named_parameters(model.module), *named_buffers(model.module)]:
                if name.endswith((".router.expert_bias", ".router.qb_beta")):
                    continue
                told = shard_of(param)
                if ".mlp.router." in name:
                    own = np.split(_fp32(param), pieces)[0].repeat(pieces, axis=0)
                else:
                    origin = EMBEDDING if told.shared else name
                    whole = _whole(read, read_block, config.model_config, origin)
                    whole = _padded(whole, told.full_shape(param.shape), told.is_vocabulary, name)
                    own = told.local_slice(whole)
                ops.copy_cast_(param, memory.from_numpy(np.ascontiguousarray(own, np.float32)))
    print_rank_0(f" made {moe.num_experts} experts from the dense model in {found.folder}")


def _fp32(param: Parameter) -> np.ndarray:
    exact = memory.contiguous(ops.cast(param, memory.dtype_of("float32")))
    return memory.as_numpy(exact)


def _whole(
    read: Callable[[str], np.ndarray],
    read_block: Callable[[str], np.ndarray],
    config: TransformerConfig,
    name: str,
) -> np.ndarray:
    """A whole tensor of the model with experts, fp32.

    Args:
        read: gives a tensor of the dense model.
        read_block: the same for what several experts are made of.
        config: of the model with experts.
        name: of the tensor.
    """
    match = _EXPERT.fullmatch(name)
    if match is None:
        return read(name)
    block, number, kind = match.groups()
    return expert_part(
        kind,
        read_block(f"{block}.{kind}"),
        int(number),
        config.moe_config.moe_upcycling_granularity,
        weight_scale(config),
        bool(config.gated_linear_unit) and kind.startswith("mapping"),
    )


def _padded(
    values: np.ndarray, shape: tuple[int, ...], is_vocabulary: bool, name: str
) -> np.ndarray:
    """The values with as many rows of a vocabulary as there are here.

    Raises:
        ValueError: they have another shape.
    """
    if is_vocabulary and values.shape[0] != shape[0]:
        rows = min(values.shape[0], shape[0])
        padded = np.zeros(shape, np.float32)
        padded[:rows] = values[:rows]
        values = padded
    if values.shape != tuple(shape):
        raise ValueError(
            f"{name} of the dense model gives shape {list(values.shape)}, but the model has "
            f"{list(shape)}; a dense block is moe_ffn_hidden_size x moe_upcycling_granularity wide"
        )
    return values


def _read(reader: TensorReader, catalog: Catalog, name: str) -> np.ndarray:
    """A whole tensor of the dense model, fp32; a head that is tied there is its embedding.

    Raises:
        ValueError: the dense model has no such tensor.
    """
    if name == HEAD and name not in catalog.tensors:
        name = EMBEDDING
    if name not in catalog.tensors:
        raise ValueError(
            f"{catalog.source} holds no {name}, which the model with experts has; shared experts, "
            "narrow experts and biases of routers cannot be made from a dense model"
        )
    return reader.read(catalog.tensor(name), "F32")
