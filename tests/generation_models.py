# SPDX-License-Identifier: Apache-2.0
"""The models of tests/record_generation.py, on this side."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import record_generation as record
from safetensors.numpy import save_file

from mindspeed_ms.config.build import assemble
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.dist_checkpointing.live_state import live_tensors
from mindspeed_ms.core.dist_checkpointing.loader import LoadOptions, load_tensors
from mindspeed_ms.engine.model_chunks import build_model_chunks
from mindspeed_ms.engine.start import fill_run_state
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.toolkit.generation.mixin import TextGenerator
from mindspeed_ms.training.checkpoint_config import config_of, spec_of

RECORDED = json.loads((record.FOLDER / "tokens.json").read_text(encoding="utf-8"))


def write_folder(model_type: str, folder: Path) -> Path:
    """A Hugging Face folder with a recorded model."""
    entry = RECORDED[model_type]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(entry["config"]), encoding="utf-8")
    values = record.weights_of(entry["shapes"])
    save_file(
        {name: np.ascontiguousarray(value) for name, value in values.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def generator(folder: Path, **parallel: object) -> TextGenerator:
    """The model of a folder, in a layout."""
    parallel_state.destroy_model_parallel()
    found = find_checkpoint(folder, None)
    catalog = open_checkpoint(found, spec_of)
    stated = config_of(catalog.common).to_dict()
    model = {**stated["model_config"], "compute_dtype": "float32"}
    sections = {
        name: {key: value for key, value in model.items() if not isinstance(value, dict)}
        for name, model in (("model_config", model), ("moe_config", stated["moe_config"]))
    }
    config = assemble({**sections, "parallel_config": parallel})
    fill_run_state(config)

    def provide(pre_process: bool, post_process: bool) -> GPTModel:
        return GPTModel(config.model_config, pre_process=pre_process, post_process=post_process)

    chunks = build_model_chunks(provide, config)
    for chunk in chunks:
        for _, param in chunk.parameters_and_names():
            param.requires_grad = False
    tensors = live_tensors([SimpleNamespace(shards=(), module=chunk) for chunk in chunks])
    load_tensors(catalog, [], None, tensors, LoadOptions())
    return TextGenerator(chunks, config)


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of words ``w0`` to ``w95`` beside the model; w7 ends a text."""
    words = {f"w{number}": number for number in range(record.VOCABULARY)}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w1"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
