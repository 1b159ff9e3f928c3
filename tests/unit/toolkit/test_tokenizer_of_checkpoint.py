# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that text is generated with is the one that training had."""

from __future__ import annotations

import base64
import json
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import pytest
from generation_models import write_folder, write_tokenizer

from mindspeed_ms import AutoModelForCausalLM
from mindspeed_ms.data.tokenizers import TokenizerSettings
from mindspeed_ms.formats import own_format
from mindspeed_ms.toolkit.serve import megatron_command
from mindspeed_ms.toolkit.tokenization import of_checkpoint

SENTENCEPIECE = Path(__file__).parents[2] / "data" / "golden" / "tok.model"
NO_FLAGS = Namespace(tokenizer=None, tokenizer_type=None)

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    model = AutoModelForCausalLM.from_pretrained(write_folder("llama", folder / "theirs"))
    model.save_pretrained(folder / "own", format="mindspeed_ms")
    return folder / "own"


@pytest.fixture
def trained_with(checkpoint):
    """The checkpoint, as a run with these settings would have written it."""
    place = checkpoint / "iter_0000000"
    index = own_format.read_index(place)
    index.pop("seal", None)

    def state(**settings):
        config = index["config"]
        stated = {**config, "dataset_config": {**config["dataset_config"], **settings}}
        own_format.write_index(place, {**index, "config": stated})
        return checkpoint

    yield state
    own_format.write_index(place, index)


def _tiktoken(folder):
    tokens = [bytes([byte]) for byte in range(256)] + [b"aB"]
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": ""}
        for rank, token in enumerate(tokens)
    ]
    (folder / "vocab.json").write_text(json.dumps(entries), encoding="utf-8")
    return str(folder / "vocab.json")


def test_no_setting_of_a_run_is_dropped(trained_with, tmp_path):
    folder = trained_with(
        tokenizer_type="SentencePieceTokenizer",
        tokenizer_model=str(SENTENCEPIECE),
        vocab_extra_ids=2,
    )
    words = of_checkpoint.tokenizer_of(NO_FLAGS, folder)
    assert words("<extra_id_1>")["input_ids"] == [506]
    pytest.importorskip("tiktoken")
    for pattern, wanted in (("v1", [10 + 256]), ("v2", [10 + code for code in b"aB"])):
        folder = trained_with(
            tokenizer_type="TikTokenizer",
            tokenizer_model=_tiktoken(tmp_path),
            vocab_size=267,
            tiktoken_pattern=pattern,
            tiktoken_num_special_tokens=10,
            tiktoken_special_tokens=["<unk>", "<s>", "</s>", "<mine>"],
        )
        words = of_checkpoint.tokenizer_of(NO_FLAGS, folder)
        assert words("aB")["input_ids"] == wanted
        assert words.tokenizer.token_to_id("<mine>") == 3


def test_code_in_a_tokenizers_folder_runs_with_the_users_consent_alone(trained_with, monkeypatch):
    folder = trained_with(
        tokenizer_type="HuggingFaceTokenizer", tokenizer_model="x", trust_remote_code=True
    )
    built = []
    monkeypatch.setattr(of_checkpoint, "named_tokenizer", built.append)
    monkeypatch.setattr(of_checkpoint, "Words", lambda tokenizer: tokenizer)
    of_checkpoint.tokenizer_of(NO_FLAGS, folder)
    of_checkpoint.tokenizer_of(Namespace(**vars(NO_FLAGS), trust_remote_code=True), folder)
    assert [data.trust_remote_code for data in built] == [False, True]


def test_a_checkpoint_without_a_tokenizer_says_so(trained_with):
    with pytest.raises(ValueError, match="does not say which tokenizer it was trained with"):
        of_checkpoint.tokenizer_of(NO_FLAGS, trained_with())


def test_megatrons_flags_of_a_tokenizer_reach_it(tmp_path, monkeypatch):
    folder = write_tokenizer(write_folder("llama", tmp_path / "llama"))
    flags = []
    monkeypatch.setattr(megatron_command, "serve", lambda settings, given: flags.append(given))
    words = ["--load", str(folder), "--tokenizer-type", "SentencePieceTokenizer"]
    words += ["--tokenizer-model", str(SENTENCEPIECE), "--vocab-extra-ids", "2"]
    assert megatron_command.main(words) == 0
    assert {field.name for field in fields(TokenizerSettings)} <= set(vars(flags[0]))
    tokenizer = of_checkpoint.tokenizer_of(flags[0], folder)
    assert tokenizer("<extra_id_1>")["input_ids"] == [506]
