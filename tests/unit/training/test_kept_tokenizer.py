# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that a run was trained with goes with its weights, wherever they go."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import family_cases
import pytest

from mindspeed_ms.config.build import assemble
from mindspeed_ms.engine.run_checkpoints import RunCheckpoints
from mindspeed_ms.formats import companions
from mindspeed_ms.toolkit.models import export
from mindspeed_ms.toolkit.tokenization.classes import GPT2Tokenizer
from mindspeed_ms.training.conversion import ConvertOptions, convert

VOCABULARY = Path(__file__).parents[2] / "data" / "tokenizers"
FILES = {"tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of our own that knows nothing of the hub, saved with a tokenizer now gone."""
    family_cases.write_folder("llama", tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", ConvertOptions(to="mindspeed_ms"))
    shutil.rmtree(tmp_path / "ours" / companions.FOLDER)
    folder = tmp_path / "tokenizer"
    tokenizer = GPT2Tokenizer(VOCABULARY / "vocab.json", VOCABULARY / "merges.txt")
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    config = assemble(
        {
            "model_config": {"num_layers": 1, "num_attention_heads": 1, "hidden_size": 8}
            | {"seq_length": 4, "vocab_size": 8},
            "dataset_config": {
                "tokenizer_type": "HuggingFaceTokenizer",
                "tokenizer_model": str(folder),
            },
        }
    )
    saver = SimpleNamespace(settings=SimpleNamespace(root=tmp_path / "ours"))
    RunCheckpoints._keep_origin(SimpleNamespace(_has_origin=False, _saver=saver), config)
    shutil.rmtree(folder)
    return tmp_path / "ours"


@pytest.mark.parametrize("between", [None, "megatron", "mindspore", "mindspeed_ms"])
def test_a_run_keeps_its_tokenizer_through_every_format(trained, tmp_path, between):
    source = trained
    if between is not None:
        source = convert(trained, tmp_path / "between", ConvertOptions(to=between)).folder
    report = convert(source, tmp_path / "back", ConvertOptions(to="huggingface"))
    notes = [*report.notes, *export.complete(report.folder, report.config, report.has_origin)]
    assert any(note.startswith("carried along: tokenizer.json") for note in notes)
    assert {path.name for path in report.folder.iterdir()} >= FILES
    assert (report.folder / "chat_template.jinja").read_text() == "{{ messages }}"
    written = json.loads((report.folder / "config.json").read_text())
    generation = json.loads((report.folder / companions.GENERATION).read_text())
    assert written["eos_token_id"] == generation["eos_token_id"] is not None


def test_the_hubs_own_tokenizer_stays_and_its_ids_are_not_touched(trained, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "tokenizer.json").write_text("{}")
    companions.keep_tokenizer(trained / companions.FOLDER, theirs)
    report = convert(theirs, tmp_path / "again", ConvertOptions(to="huggingface"))
    assert report.has_origin
    export.complete(report.folder, report.config, report.has_origin)
    assert (report.folder / "tokenizer.json").read_text() == "{}"
    before, after = (
        json.loads((one / "config.json").read_text()) for one in (theirs, report.folder)
    )
    assert after == before


def test_arguments_of_megatron_name_the_tokenizer(trained, tmp_path):
    named = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "/not/there"}
    options = ConvertOptions(to="megatron", arguments=named)
    folder = convert(trained, tmp_path / "megatron", options).folder
    shutil.rmtree(tmp_path / "megatron" / companions.FOLDER)
    report = convert(folder, tmp_path / "back", ConvertOptions(to="huggingface"))
    assert report.config.dataset_config.tokenizer_model == "/not/there"
    notes = export.complete(report.folder, report.config, report.has_origin)
    assert any("tokenizer left out" in note and "/not/there" in note for note in notes)
