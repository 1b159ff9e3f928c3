# SPDX-License-Identifier: Apache-2.0
"""tools/generate.py: from a checkpoint and a prompt to a text."""

from __future__ import annotations

import json

import pytest
from generation_models import RECORDED, write_folder, write_tokenizer

from mindspeed_ms import AutoModelForCausalLM
from mindspeed_ms.command import generate

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
        (("--temperature", 0, "--do-sample"), "temperature is 0"),
        (("--prompt-file", "/dev/null"), "there is no prompt"),
        (("--tensor-model-parallel-size", 2), "2"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, words):
    prompt = () if "--prompt-file" in arguments else ("--prompt", PROMPT)
    try:
        status = _run("--load", folder, *prompt, *arguments)
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and words in error and error.count("\n") == 1 and "Traceback" not in error
