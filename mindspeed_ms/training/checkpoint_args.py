# SPDX-License-Identifier: Apache-2.0
"""``--use-checkpoint-args``: the model's options from the checkpoint that is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mindspeed_ms.config.all_config import SECTION_CLASSES, AllConfig
from mindspeed_ms.config.build import Sections
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.models.identity import RUN_SETTINGS
from mindspeed_ms.training.checkpoint_config import MODEL_SECTIONS, config_of, spec_of
from mindspeed_ms.training.flags import ROWS, Field

MAY_CHANGE = frozenset(
    {
        "seq_length",
        "max_position_embeddings",
        "vocab_size",
        "attention_dropout_rate",
        "hidden_dropout_rate",
    }
)
"""Fields that a checkpoint states and the command line may state otherwise."""


LAYOUT = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "expert_model_parallel_size",
)
"""Sizes that ``--use-mp-args-from-checkpoint-args`` takes over."""


def sections_from_checkpoint(
    load: str | None, step: int | None, given: Collection[str] = ()
) -> Sections:
    """Fields of the model that a checkpoint stands for.

    What changes the function of the model is the checkpoint's, whatever the command line says;
    lengths and dropout are unless it says so; types, kernels and recomputation never are.

    Args:
        load: folder of the checkpoint, ``--load``.
        step: iteration, None for the newest.
        given: attributes that the command line sets.

    Raises:
        ValueError: nothing is loaded, or what is loaded does not describe its model.

    Source: Megatron-LM ``load_args_from_checkpoint`` (which arguments may be changed).
    """
    stated = config_of(_common_of(load, step))
    said = {
        path
        for row in ROWS
        if row.dest in given and isinstance(row.state, Field)
        for path in row.state.paths
    }
    return model_sections(stated, said)


def layout_of_checkpoint(load: str | None, step: int | None) -> Sections:
    """How the ranks shared the model of the run that wrote a checkpoint.

    Args:
        load: folder of the checkpoint, ``--load``.
        step: iteration, None for the newest.

    Raises:
        ValueError: nothing is loaded, or what is loaded was not written by a run.

    Source: Megatron-LM ``load_args_from_checkpoint`` (which sizes).
    """
    common = _common_of(load, step)
    stated = (common.get("config") or {}).get("parallel_config") or common.get("megatron_args")
    if stated is None:
        raise ValueError(
            f"--use-mp-args-from-checkpoint-args: {load} was not written by a run, so it states no "
            "parallel sizes; give them as flags"
        )
    return {"parallel_config": {name: stated.get(name) for name in LAYOUT if stated.get(name)}}


def model_sections(config: AllConfig, said: Collection[str] = ()) -> Sections:
    """Fields of a configuration that describe its model, without those that others state.

    Args:
        config: the configuration.
        said: ``section.field`` of those that may change and are said elsewhere.
    """
    stated = config.to_dict()
    return {
        section: {
            name: value
            for name, value in stated[section].items()
            if name not in SECTION_CLASSES[section].LINKS
            and (
                name not in RUN_SETTINGS or (name in MAY_CHANGE and f"{section}.{name}" not in said)
            )
        }
        for section in MODEL_SECTIONS
    }


def rows_of_checkpoint(load: str | None, step: int | None) -> int:
    """Rows in use of a checkpoint's vocabulary, without padding; 0 if it does not say.

    Raises:
        ValueError: nothing is loaded.
    """
    return int(_common_of(load, step).get("vocab_size") or 0)


def is_absent(load: str | None, step: int | None) -> bool:
    """Whether a folder that is named holds no checkpoint, as on a machine that only plans."""
    return load is not None and find_checkpoint(Path(load), step) is None


def _common_of(load: str | None, step: int | None) -> Mapping[str, Any]:
    if not load:
        raise ValueError("--use-checkpoint-args needs --load; name the checkpoint's folder")
    found = find_checkpoint(Path(load), step)
    if found is None:
        raise ValueError(f"--use-checkpoint-args: {load} holds no checkpoint; correct --load")
    return open_checkpoint(found, spec_of).common
