# SPDX-License-Identifier: Apache-2.0
"""A teacher in memory: built beside the student's last stage, filled from its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import parallel_state, run_state
from mindspeed_ms.core.dist_checkpointing.live_state import parameters_of
from mindspeed_ms.core.dist_checkpointing.loader import LoadOptions, load_tensors
from mindspeed_ms.core.dist_checkpointing.opener import find_together, open_together
from mindspeed_ms.core.dist_checkpointing.shared_folders import require_everywhere
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.pipeline_parallel.schedules import ForwardStep, LossFunc
from mindspeed_ms.core.run_state import RunState
from mindspeed_ms.core.teacher import Teacher
from mindspeed_ms.core.tensor_parallel.random import counting_draws
from mindspeed_ms.engine.adapters import head_alias
from mindspeed_ms.engine.current_config import set_all_config
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.engine.parallel_setup import DEFAULT_SEED, seed_model
from mindspeed_ms.formats import names
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.teacher import teacher_config


def teacher_of(
    config: AllConfig, models: Sequence[DistributedDataParallel], vocab_size: int | None
) -> Teacher | None:
    """Build the teacher that a configuration asks for, and let the student's last chunk see it.

    Args:
        config: the run's configuration.
        models: the chunks of this rank.
        vocab_size: tokens in use.

    Returns:
        The teacher; None on other pipeline stages than the last, and in a run without one.

    Raises:
        ValueError: there is no such checkpoint, it does not fit its description, or the student is
            no ``GPTModel``.

    Parallelism: collective over the world.
    """
    training = config.training_config
    if not training.qad_enable:
        return None
    own = teacher_config(config)
    is_here = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    students = [] if not is_here else _students(models[-1].module)
    state = RunState(run_state.current().args)
    state.put(parallel_state.without_pipeline())
    chunks: list[Cell] = []
    with run_state.activated(state):
        set_all_config(own)
        seed_model(DEFAULT_SEED, DEFAULT_SEED)  # nothing is drawn: all of it is loaded
        if is_here:
            with counting_draws():
                chunks.append(GPTModel(own.model_config))
    for chunk in chunks:
        for name, param in chunk.parameters_and_names():
            param.name = name
        chunk.set_train(False)
    _fill(own, chunks, str(training.qad_teacher_load), vocab_size)
    if not is_here:
        return None
    teacher = Teacher(
        model=chunks[0],
        state=state,
        temperature=training.kl_temperature,
        weight=training.kl_loss_weight,
        labels_weight=training.qad_lm_loss_weight,
        sums=training.kl_loss_reduction == "sum",
    )
    for student in students:
        student.teacher = teacher
    return teacher


def _students(model: Cell) -> list[GPTModel]:
    found = [cell for _, cell in model.cells_and_names() if isinstance(cell, GPTModel)]
    if not found:
        raise ValueError(
            "qad_enable teaches a GPTModel, which the model of model_provider does not hold; let "
            "it return one, or leave qad_enable out"
        )
    return found


def _fill(config: AllConfig, chunks: list[Cell], path: str, vocab_size: int | None) -> None:
    found = find_together(Path(path)) if Path(path).exists() else None
    if found is None or found.kind == "peft":
        raise ValueError(
            f"qad_teacher_load is {path}, where no model is; give the folder of the teacher"
        )
    require_everywhere(found.folder)
    print_rank_0(f" loading teacher from {found.folder} (format {found.kind})")
    catalog = open_together(found, lambda common: gpt_spec(config.model_config))
    is_tied = not config.model_config.untie_embeddings_and_output_weights
    options = LoadOptions(
        aliases=head_alias(config, catalog),
        vocab_size=catalog.common.get("vocab_size") or vocab_size,
        ignored=(names.HEAD,) if is_tied else (),
    )
    tensors = [tensor for chunk in chunks for tensor in parameters_of(chunk)]
    report = load_tensors(catalog, [], None, tensors, options)
    for note in report.notes:
        print_rank_0(f"  {note}")


def reporting(step: ForwardStep, teacher: Teacher) -> ForwardStep:
    """A forward step whose reports state both losses."""

    def forward_step(data_iterator: Iterator, model: Any) -> tuple[Tensor, LossFunc]:
        output, loss_func = step(data_iterator, model)

        def with_teacher(output: Tensor) -> tuple[Tensor, float, dict[str, tuple[Any, Any]]]:
            loss, tokens, report = loss_func(output)
            return loss, tokens, teacher.told(report)

        return output, with_teacher

    return forward_step
