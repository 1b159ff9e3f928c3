# SPDX-License-Identifier: Apache-2.0
"""Texts of a task from a front door, and the file that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import comm
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.files.whole import write_text
from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.generation.config import ALIASES, DEFAULTS
from mindspeed_ms.toolkit.mapping.tree import Task
from mindspeed_ms.toolkit.models.auto import model_class
from mindspeed_ms.toolkit.models.configuration import EngineConfig
from mindspeed_ms.toolkit.models.locate import WEIGHTS
from mindspeed_ms.toolkit.pipelines.text_generation import pipeline
from mindspeed_ms.toolkit.tokenization.auto import AutoTokenizer
from mindspeed_ms.toolkit.trainer.inputs import texts_of

RESULT_FILE = "text_generation_result.txt"
NO_WEIGHTS = "WARNING: no weights are given or found: what is generated is random"
_LAYOUT = ("tensor_model_parallel_size", "pipeline_model_parallel_size")

Texts = list[dict[str, list[str]]]
"""One for each text that was gone on with."""


def write_texts(found: Sequence[Mapping[str, list[str]]]) -> None:
    """Write a line for each text to the file of this folder, on the first rank."""
    if comm.get_rank() == 0:
        write_text(RESULT_FILE, "".join(f"{one}\n" for one in found))


def predict_task(task: Task) -> Texts:
    """Go on with the texts of a task; printed, and written to ``text_generation_result.txt``.

    Raises:
        ValueError: no texts, or options that cannot be served.
        OSError: the tokenizer's files are not here.

    Parallelism: called by every rank; collective.
    """
    texts = texts_of(list(task.predict_data))
    fields = dict(task.sections.get("model_config", {}))
    rows = task.sections.get("dataset_config", {}).get("vocab_size")
    if rows:
        fields["vocab_size"] = rows  # without what a layout fills up
    config = EngineConfig(**fields, moe_config=dict(task.sections.get("moe_config", {})))
    parallel = task.sections.get("parallel_config", {})
    layout = {name: parallel[name] for name in _LAYOUT if parallel.get(name, 1) > 1}
    name = task.checkpoint or task.model_name
    place = Path(name) if name and Path(name).exists() else None
    place = place or (hub.find(name, WEIGHTS) if name else None)
    if place is None and task.checkpoint:
        hub.folder_of(name, WEIGHTS, "give load_checkpoint a file or a folder")  # says so
    cls = model_class(config)
    if place is None:
        print_rank_0(NO_WEIGHTS)
        model = cls(config, **layout)
    else:
        model = cls.from_pretrained(str(place), config=config, **layout)
    model.set_train(False)
    tokenizer = AutoTokenizer.from_pretrained(task.model_name or name)
    generate = pipeline("text_generation", model=model, tokenizer=tokenizer)
    found = generate(texts, batch_size=task.predict_batch_size, **_options(task.generation))
    write_texts(found)
    print_rank_0(str(found))
    return found


def _options(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Options of generation among the keys of a model's configuration."""
    known = {*DEFAULTS, *ALIASES}
    return {
        name: value for name, value in generation.items() if name in known and value is not None
    }
