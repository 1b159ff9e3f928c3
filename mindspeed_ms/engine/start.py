"""Make this process ready for a configuration."""

from __future__ import annotations

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, device
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.num_microbatches_calculator import (
    destroy_num_microbatches_calculator,
    init_num_microbatches_calculator,
)
from mindspeed_ms.engine.current_config import set_all_config
from mindspeed_ms.engine.datasets import set_loader_settings
from mindspeed_ms.engine.output import print_rank_0, set_up_output
from mindspeed_ms.engine.parallel_setup import set_parallel_context, set_seed


def set_up_run(all_config: AllConfig) -> None:
    """Make this process ready for a configuration: groups, seeds, batch sizes, output, kernels.

    Raises:
        ValueError: the configuration does not fit the number of ranks.
    """
    if all_config.parallel_config.deterministic_mode:
        device.set_deterministic()
    comm.init_process_group()
    world_size = comm.get_world_size()
    all_config.validate(world_size)
    set_all_config(all_config)
    training, dataset = all_config.training_config, all_config.dataset_config
    set_up_output(training.logging_level)
    set_parallel_context(all_config.parallel_config)
    set_seed(training.seed, all_config.parallel_config.use_cpu_initialization)
    set_loader_settings(dataset)
    destroy_num_microbatches_calculator()
    init_num_microbatches_calculator(
        comm.get_rank(),
        training.rampup_batch_size,
        all_config.global_batch_size(world_size),
        dataset.batch_size,
        parallel_state.get_data_parallel_world_size(),
        training.decrease_batch_size_if_needed,
        training.step_batch_size_schedule,
        all_config.model_config.seq_length,
    )
    _report_layout(all_config)


def _report_layout(all_config: AllConfig) -> None:
    parallel = all_config.parallel_config
    world_size = comm.get_world_size()
    print_rank_0(
        f"using world size: {world_size}, "
        f"data-parallel size: {parallel.data_parallel_size(world_size)}, "
        f"context-parallel size: {parallel.context_parallel_size}, "
        f"tensor-model-parallel size: {parallel.tensor_model_parallel_size}, "
        f"pipeline-model-parallel size: {parallel.pipeline_model_parallel_size}"
    )
    for line in ops.report().splitlines():
        print_rank_0(line)
