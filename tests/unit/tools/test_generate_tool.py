# SPDX-License-Identifier: Apache-2.0
"""tools/generate.py: from a checkpoint and a prompt to a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from generation_models import RECORDED, write_folder, write_tokenizer

from mindspeed_ms import AutoModelForCausalLM
from mindspeed_ms.command import generate
from mindspeed_ms.formats.find import open_checkpoint
from mindspeed_ms.toolkit.tokenization import of_checkpoint
from mindspeed_ms.training.conversion import ConvertOptions, convert

GREEDY = RECORDED["llama"]["tokens"]["no end"][0]
TEXT = " ".join(f"w{token}" for token in GREEDY)
PROMPT = " ".join(f"w{token}" for token in GREEDY[:6])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(write_folder("llama", tmp_path_factory.mktemp("llama")))


def _run(*arguments):
    return generate.main([str(argument) for argument in arguments])


def test_a_text_from_hugging_faces_files_and_from_our_own(folder, tmp_path, capsys):
    options = ("--prompt", PROMPT, "--max-new-tokens", 20, "--eos-token-id", "null")
    assert _run("--load", folder, *options) == 0
    assert capsys.readouterr().out == TEXT + "\n"
    model = AutoModelForCausalLM.from_pretrained(folder)
    for form in ("mindspeed_ms", "megatron"):
        model.save_pretrained(tmp_path / form, format=form)
        assert _run("--load", tmp_path / form, "--tokenizer", folder, *options, "--stream") == 0
        assert capsys.readouterr().out == TEXT + "\n"
        with pytest.raises(SystemExit, match="2"):
            _run("--load", tmp_path / form, *options, "--unknown")
        assert "unrecognized arguments: --unknown" in capsys.readouterr().err


CORE = Path(__file__).parents[2] / "data" / "megatron_core"
NULL = ("--tokenizer-type", "NullTokenizer", "--vocab-size", 31)


@pytest.mark.parametrize("case", ["dense", "moe", "latent"])
def test_a_text_from_every_format_of_a_checkpoint(case, tmp_path, capsys):
    """Megatron's two, and what they are converted into: the same tokens."""
    options = ("--prompt", "5 6 9 3", "--max-new-tokens", 9, "--eos-token-id", "null")
    folders = [CORE / case / "torch", CORE / case / "torch_dist"]
    theirs = () if case == "latent" else ("huggingface",)  # which has no such family
    for form in ("mindspeed_ms", "megatron", "mindspore", *theirs):
        convert(folders[0], tmp_path / form, ConvertOptions(to=form))
        folders.append(tmp_path / form)
    texts = {}
    for folder in folders:
        assert _run("--load", folder, *NULL, *options) == 0, folder
        texts[folder] = capsys.readouterr().out
    assert set(texts.values()) == {texts[folders[0]]}
    words = texts[folders[0]].split()
    assert words[:4] == ["5", "6", "9", "3"] and len(words) == 13 and len(set(words)) > 5


def test_the_tokenizer_of_a_megatron_checkpoint_is_the_one_in_its_arguments(capsys, monkeypatch):
    def stated(found, spec_of):
        catalog = open_checkpoint(found, spec_of)
        named = {"tokenizer_type": "NullTokenizer", "vocab_size": 31}
        catalog.common["megatron_args"] |= named
        return catalog

    monkeypatch.setattr(of_checkpoint, "open_checkpoint", stated)
    options = ("--prompt", "5 6 9 3", "--max-new-tokens", 9)
    assert _run("--load", CORE / "dense" / "torch_dist", *options) == 0
    found = capsys.readouterr().out
    assert _run("--load", CORE / "dense" / "torch_dist", *NULL, *options) == 0
    assert capsys.readouterr().out == found


def test_prompts_from_a_file_drawn_as_json(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\nw5 w6\n", encoding="utf-8")
    options = ("--do-sample", "--num_return_sequences", 2, "--max-new-tokens", 4, "--seed", 1)
    assert _run("--load", folder, "--prompt-file", prompts, *options, "--json", "--new-only") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == [PROMPT, "w5 w6"]
    assert all(len(set(line["text_generation_text"])) == 2 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--load", "nowhere"), "nowhere holds no checkpoint; name the folder of one"),
        (("--max-length", 2), "the prompt has 6 tokens, but max_length is 2"),
        (("--max-new-tokens", 2147483648), "up to 2147483654 tokens need a cache of "),
        (("--max-length", 1 << 45), "up to 35184372088832 tokens need a cache of "),
        (("--num-beams", 1 << 33), "lower max_new_tokens (or max_length), or the number of seq"),
        (("--temperature", 0, "--do-sample"), "temperature is 0"),
        (("--prompt-file", "empty.txt"), "there is no prompt"),
        (("--prompt-file", "/dev/null"), "/dev/null is a device, not a file"),
        (("--tensor-model-parallel-size", 2), "2"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    prompt = () if "--prompt-file" in arguments else ("--prompt", PROMPT)
    try:
        status = _run("--load", folder, *prompt, *arguments)
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and words in error and error.count("\n") == 1 and "Traceback" not in error
