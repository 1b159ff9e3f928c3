# SPDX-License-Identifier: Apache-2.0
"""What a configuration says of distillation from saved logits."""

from __future__ import annotations

from pathlib import Path

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import distillation
from mindspeed_ms.core.context_parallel import context_parallel


def set_up_distillation(config: AllConfig) -> None:
    """Make the run a teacher or a student, if its configuration says so.

    Raises:
        ValueError: the folder cannot be made, or there is none to read from.
    """
    training, teaching = config.training_config, distillation.current()
    teaching.saves = teaching.loads = teaching.places = teaching.listed = None
    identity = _identity(config)
    if training.logits_save_dir is not None and training.logits_save_top_k is not None:
        folder = Path(training.logits_save_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"logits_save_dir {folder} cannot be made: {error.strerror}; give another folder"
            ) from None
        teaching.saves = distillation.SaveOptions(
            folder=folder,
            top_k=training.logits_save_top_k,
            top_p=training.logits_save_top_p,
            min_k=training.logits_save_top_p_min_k,
            dtype=training.logits_save_dtype,
            identity=identity,
        )
    if training.logits_load_dir is not None:
        folder = Path(training.logits_load_dir)
        if not folder.is_dir():
            raise ValueError(
                f"logits_load_dir {folder} is no folder; give the teacher's logits_save_dir"
            )
        teaching.loads = distillation.LoadOptions(
            folder=folder,
            alpha=training.logits_load_kd_loss_alpha,
            ignores_errors=training.logits_load_ignore_errors,
            identity=identity,
        )
    context = context_parallel(config.parallel_config)
    if context is not None:
        teaching.places = context.positions(config.model_config.seq_length)


def _identity(config: AllConfig) -> str:
    """What decides which sequence has which number."""
    training, dataset = config.training_config, config.dataset_config
    samples = training.train_samples
    if samples is None:
        samples = training.training_iters * config.global_batch_size(comm.get_world_size())
    length = config.model_config.seq_length
    data = dataset.train_data_path or dataset.data_path or ()
    names = " ".join(Path(str(one)).name for one in data)
    return f"seed {training.seed}, length {length}, {samples} samples of {names or 'own data'}"
