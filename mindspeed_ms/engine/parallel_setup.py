# SPDX-License-Identifier: Apache-2.0
"""Start-up steps under the import path of the user guide."""

from __future__ import annotations

import random

import numpy as np

from mindspeed_ms.backend import comm
from mindspeed_ms.config import ModelParallelConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.tensor_parallel.random import model_parallel_manual_seed, seed_initialization
from mindspeed_ms.engine.datasets import get_blend_and_blend_per_split
from mindspeed_ms.engine.micro_batches import get_batch_on_this_cp_rank, get_batch_on_this_tp_rank

__all__ = [
    "DEFAULT_SEED",
    "get_batch_on_this_cp_rank",
    "get_batch_on_this_tp_rank",
    "get_blend_and_blend_per_split",
    "set_parallel_context",
    "set_seed",
]

DEFAULT_SEED = 1234


def set_parallel_context(parallel_config: ModelParallelConfig) -> None:
    """Start communication if need be and create the process groups of a layout.

    Calling it again with the same layout changes nothing.

    Raises:
        RuntimeError: the world size does not fit, or groups of another layout exist.
    """
    comm.init_process_group()
    wanted = (
        parallel_config.tensor_model_parallel_size,
        parallel_config.pipeline_model_parallel_size,
        parallel_config.context_parallel_size,
        parallel_config.expert_model_parallel_size,
    )
    shares = parallel_config.hierarchical_context_parallel_sizes
    if parallel_state.model_parallel_is_initialized():
        present = (
            parallel_state.get_tensor_model_parallel_world_size(),
            parallel_state.get_pipeline_model_parallel_world_size(),
            parallel_state.get_context_parallel_world_size(),
            parallel_state.get_expert_model_parallel_world_size(),
        )
        if present != wanted:
            raise RuntimeError(
                f"groups exist for (tensor, pipeline, context, expert) parallel sizes {present}, "
                f"but {wanted} are asked for; call destroy_model_parallel() first"
            )
        groups = parallel_state.get_hierarchical_context_parallel_groups()
        if tuple(group.size for group in groups) != shares:
            raise RuntimeError(
                f"context parallel groups exist for (all-to-all, ring) sizes "
                f"{tuple(group.size for group in groups)}, but {shares} are asked for; call "
                "destroy_model_parallel() first"
            )
        return
    tensor, pipeline, context, expert = wanted
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=parallel_config.virtual_pipeline_model_parallel_size,
        context_parallel_size=context,
        expert_model_parallel_size=expert,
        order=parallel_config.order,
        hierarchical_context_parallel_sizes=shares,
        expert_tensor_parallel_size=parallel_config.expert_tensor_parallel_size,
        num_distributed_optimizer_instances=parallel_config.optimizer_instances(
            comm.get_world_size()
        ),
    )


def set_seed(
    seed: int | None, use_cpu_initialization: bool = False, differs_by_replica: bool = False
) -> None:
    """Seed initial weights, dropout and the host's generators.

    Args:
        seed: None means 1234.
        use_cpu_initialization: draw the initial weights of every pipeline stage from a stream of
            its own, as Megatron's flag does. False: the stages share one stream, so the weights
            do not depend on the layout (see ``StageDraws``).

        differs_by_replica: add 10 times the data-parallel rank, except for initial weights, which
            Megatron broadcasts from the first.

    Source: Megatron-LM ``_set_random_seed``: each pipeline stage adds 100 times its number.
    """
    base = DEFAULT_SEED if seed is None else seed
    initialization = base
    if parallel_state.model_parallel_is_initialized():
        base += 100 * parallel_state.get_pipeline_model_parallel_rank()
    stage = base
    if differs_by_replica and parallel_state.model_parallel_is_initialized():
        base += 10 * parallel_state.get_data_parallel_rank()
    random.seed(base)
    np.random.seed(base % 2**32)
    seed_model(base, stage if use_cpu_initialization else initialization)


def seed_model(base: int, initialization: int) -> None:
    """Seed dropout and initial weights alone."""
    tensor_rank = expert_rank = expert_tensor_rank = 0
    if parallel_state.model_parallel_is_initialized():
        tensor_rank = parallel_state.get_tensor_model_parallel_rank()
        expert_rank = parallel_state.get_expert_model_parallel_rank()
        expert_tensor_rank = parallel_state.get_expert_tensor_parallel_rank()
    seed_initialization(initialization)
    model_parallel_manual_seed(base, tensor_rank, expert_rank, expert_tensor_rank)
