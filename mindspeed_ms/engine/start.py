# SPDX-License-Identifier: Apache-2.0
"""What a run consists of beside model and data: groups, seeds, batch sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, device
from mindspeed_ms.config import AllConfig, unsupported_reason
from mindspeed_ms.core import run_state
from mindspeed_ms.core.optimizer.optimizer_param_scheduler import make_param_schedule
from mindspeed_ms.engine.agreement import require_agreement
from mindspeed_ms.engine.batch_counts import calculator_of
from mindspeed_ms.engine.current_config import set_all_config
from mindspeed_ms.engine.observe import extras
from mindspeed_ms.engine.output import print_rank_0, set_up_output
from mindspeed_ms.engine.parallel_setup import set_parallel_context, set_seed
from mindspeed_ms.engine.report.page import missing_packages
from mindspeed_ms.files.whole import write_text


def check_configuration(all_config: AllConfig) -> None:
    """Join the job, and refuse a configuration that it cannot carry out.

    Raises:
        ValueError: settings that contradict each other, that do not fit the number of ranks, or
            that ask for what is not there; ranks with other settings than the first.
    """
    if all_config.parallel_config.deterministic_mode:
        device.set_deterministic()
    comm.init_process_group()
    require_agreement(all_config)
    comm.set_timeout(all_config.parallel_config.distributed_timeout_minutes)
    all_config.validate(comm.get_world_size())
    check_schedule(all_config, comm.get_world_size())
    refuse_unsupported(all_config)


def check_schedule(all_config: AllConfig, world_size: int) -> None:
    """Refuse a course of the learning rate that training of this length cannot have.

    Raises:
        ValueError: see ``make_param_schedule``.
    """
    training, optimizer = all_config.training_config, all_config.optimizer_config
    if training.train_samples or training.training_iters:  # else a loader says it later
        make_param_schedule(training, optimizer, all_config.global_batch_size(world_size))


def refuse_unsupported(all_config: AllConfig) -> None:
    """Refuse a configuration that asks for what is not there.

    Raises:
        ValueError: with what is missing.
    """
    reasons = unsupported_reason(all_config)
    if reasons:
        raise ValueError("; ".join(reasons))
    extras.require_wandb(all_config)
    problem = missing_packages() if all_config.training_config.report else None
    if problem is not None:
        raise ValueError(f"{problem}, or leave --report out")


def set_up_run(all_config: AllConfig) -> None:
    """Make this process ready for scripts that build data and models before ``pretrain``.

    Groups, seeds and batch sizes of an earlier configuration are replaced.

    Raises:
        ValueError: see ``check_configuration``.
    """
    check_configuration(all_config)
    run_state.renew()
    set_up_output(all_config.training_config.logging_level)
    fill_run_state(all_config)


def fill_run_state(all_config: AllConfig) -> None:
    """Give the active run, which has none of it yet, its groups, seeds and batch sizes.

    Raises:
        RuntimeError: the layout does not fit the number of ranks.

    Parallelism: collective over the world.
    """
    parallel = all_config.parallel_config
    set_all_config(all_config)
    set_parallel_context(parallel)
    set_seed(
        all_config.training_config.seed,
        parallel.use_cpu_initialization,
        all_config.training_config.data_parallel_random_init,
    )
    run_state.current().put(calculator_of(all_config))


def report_layout(all_config: AllConfig) -> None:
    """Print how the ranks share the work, and what computes."""
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
    training = all_config.training_config
    if training.config_logger_dir is not None and comm.get_rank() == 0:
        path = Path(training.config_logger_dir) / "config.json"
        write_json("--config-logger-dir", path, all_config.to_dict())
    if not training.skip_train:
        every = training.save_interval
        when = f"every {every} iterations and at the end" if every else "at the end"
        if training.non_persistent_save_interval:
            when += f", replaced every {training.non_persistent_save_interval} between"
        kept = training.save_checkpoints and training.output_dir
        print_rank_0(
            f"checkpoints: in {training.output_dir}, {when}" if kept else "checkpoints: none"
        )
    missing = extras.missing_tensorboard(all_config)
    if missing is not None:
        print_rank_0(missing)


def write_json(flag: str, path: Path, value: Mapping[str, Any]) -> None:
    """Write what a flag asks for.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ValueError(f"{flag}: {path} cannot be written ({error}); choose another") from None
