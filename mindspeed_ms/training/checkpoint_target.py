# SPDX-License-Identifier: Apache-2.0
"""``--ckpt-convert-format``: a run that writes what it loads in another format, and ends."""

from __future__ import annotations

from pathlib import Path

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core.dist_checkpointing.shared_folders import first_rank_decides
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.training.conversion import ConvertOptions, convert


def is_converted(config: AllConfig) -> bool:
    """Convert what the configuration loads, if it asks for that instead of training.

    Returns:
        Whether that was asked for, and is done.

    Raises:
        ValueError: nothing is loaded, no folder is given, or the checkpoint cannot be converted.

    Source: Megatron-LM ``setup_model_and_optimizer`` (``--ckpt-convert-format``).

    Parallelism: collective over the world; rank 0 converts.
    """
    training, parallel = config.training_config, config.parallel_config
    kind = training.ckpt_convert_format
    if kind is None:
        return False
    for name, given in (
        ("--load", training.load_checkpoint),
        ("--ckpt-convert-save", training.ckpt_convert_save),
    ):
        if not given:
            raise ValueError(f"--ckpt-convert-format {kind} needs {name}; name the folder")
    target = Path(training.ckpt_convert_save or "") / kind
    world_size = comm.get_world_size()
    options = ConvertOptions(
        to="megatron" if kind == "torch" else "mindspeed_ms",
        step=training.ckpt_step,
        tensor=parallel.tensor_model_parallel_size,
        pipeline=parallel.pipeline_model_parallel_size,
        virtual_pipeline=parallel.virtual_pipeline_model_parallel_size,
        expert=parallel.expert_model_parallel_size,
        data_parallel=parallel.data_parallel_size(world_size),
        with_optimizer=not training.no_load_optim and not training.finetune,
        make_vocab_size_divisible_by=config.dataset_config.make_vocab_size_divisible_by,
    )
    first_rank_decides(lambda: str(convert(Path(training.load_checkpoint), target, options).folder))
    print_rank_0(f"> converted checkpoint: {training.load_checkpoint} -> {target} ({kind}).")
    return True
