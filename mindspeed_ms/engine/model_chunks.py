# SPDX-License-Identifier: Apache-2.0
"""The model of this rank: one chunk, or one per virtual stage, with its gradient buffers."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mindspore.nn import Cell

from mindspeed_ms.config import AllConfig, ModelParallelConfig, OptimizerConfig, TrainingConfig
from mindspeed_ms.config.rules import shards_optimizer
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
)
from mindspeed_ms.core.parameter import named_parameters, num_elements
from mindspeed_ms.engine.adapters import report_adapters
from mindspeed_ms.plan.layer_placement import layer_placement

logger = logging.getLogger(__name__)


def get_model(
    model_provider_func: Callable[..., Cell], config: AllConfig
) -> list[DistributedDataParallel]:
    """Build this rank's model chunks and attach their gradient buffers."""
    modules = build_model_chunks(model_provider_func, config)
    for module in modules:
        module.set_train(True)
        for name, param in named_parameters(module):
            param.name = name
    count = sum(num_elements(param) for module in modules for _, param in named_parameters(module))
    logger.debug("parameters on this rank: %d", count)
    if parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0:
        tensor = parallel_state.get_tensor_model_parallel_rank()
        pipeline = parallel_state.get_pipeline_model_parallel_rank()
        logger.info(
            "number of parameters on (tensor, pipeline) model parallel rank (%d, %d): %d",
            tensor,
            pipeline,
            count,
        )
    report_adapters(config, modules)
    ddp_config = data_parallel_config(
        config.training_config, config.parallel_config, config.optimizer_config, count
    )
    is_first_stage = parallel_state.get_pipeline_model_parallel_rank() == 0
    return [
        DistributedDataParallel(
            ddp_config, module, disable_bucketing=not is_first_stage or chunk > 0
        )
        for chunk, module in enumerate(modules)
    ]


def data_parallel_config(
    training: TrainingConfig,
    parallel: ModelParallelConfig,
    optimizer: OptimizerConfig,
    num_parameters: int,
) -> DistributedDataParallelConfig:
    """How a configuration reduces gradients on this rank, and what it shards.

    Args:
        training: its section.
        parallel: its section.
        optimizer: its section.
        num_parameters: elements on this rank, for ``ddp_num_buckets``.
    """
    stage = parallel_state.get_pipeline_model_parallel_rank()
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=training.accumulate_allreduce_grads_in_fp32,
        overlap_grad_reduce=training.overlaps_reduction(stage),
        overlap_param_gather=optimizer.overlap_param_gather,
        use_distributed_optimizer=shards_optimizer(training, optimizer, parallel),
        bucket_size=training.elements_of_bucket(num_parameters),
        average_in_collective=training.ddp_average_in_collective,
        pad_buckets_for_high_nccl_busbw=training.ddp_pad_buckets_for_high_nccl_busbw,
        mem_align_bytes=training.mem_align_bytes,
        check_for_nan_in_grad=True,  # what to do about one is the run's decision
        zero_level=parallel.zero_level,
    )


def build_model_chunks(model_provider_func: Callable[..., Cell], config: AllConfig) -> list[Cell]:
    """The models of this pipeline stage: one, or one per virtual stage.

    While a chunk is built, ``parallel_state`` names it as the current virtual stage.
    """
    chunks = layer_placement(config.model_config, config.parallel_config).num_chunks
    parallel_state.set_virtual_pipeline_model_parallel_world_size(chunks if chunks > 1 else None)
    modules = []
    for chunk in range(chunks):
        parallel_state.set_virtual_pipeline_model_parallel_rank(chunk if chunks > 1 else None)
        modules.append(
            model_provider_func(
                pre_process=parallel_state.is_pipeline_first_stage(),
                post_process=parallel_state.is_pipeline_last_stage(),
            )
        )
    return modules
