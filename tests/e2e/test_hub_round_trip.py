# SPDX-License-Identifier: Apache-2.0
"""From the hub into a training run and back: rows, keys, files; and what transformers says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hf_models
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("TRANSFORMERS_PYTHON")
"""An interpreter with transformers and torch."""


def run(*words, python=sys.executable):
    command = [python, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A hub's model of 1,003 rows, trained for a step with a smaller tokenizer, and exported."""
    place = tmp_path_factory.mktemp("hub")
    source = place / "source"
    hf_models.write(source, "llama", vocab_size=1003, eos_token_id=None, bos_token_id=None)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    run(
        "pretrain_gpt.py",
        *f"--load {source} --use-checkpoint-args --finetune --save {place / 'run'}".split(),
        *"--save-interval 1".split(),
        *"--train-iters 1 --micro-batch-size 1 --global-batch-size 1 --seq-length 16".split(),
        *"--lr 1e-3 --lr-decay-style constant --data-path data/tiny/tiny_text_document".split(),
        *"--split 100,0,0 --eval-iters 0 --tokenizer-type SentencePieceTokenizer".split(),
        *"--tokenizer-model data/tiny/tok.model".split(),
    )
    run(
        *f"tools/convert_ckpt convert {place / 'run'} {place / 'back'} --to huggingface".split(),
        *"--max-shard-size 100KB".split(),
    )
    return place


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.e2e
def test_a_trained_model_of_the_hub_goes_back_whole(trained):
    before, after = config_of(trained / "source"), config_of(trained / "back")
    # The ids come from the tokenizer of the run; nothing else has changed.
    ids = {key: after[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert ids["eos_token_id"] is not None
    assert after == {**before, **ids}
    assert (trained / "back/chat_template.jinja").read_text() == "{{ messages }}"
    files = {path.name for path in (trained / "back").iterdir()}
    assert {"tokenizer.json", "generation_config.json", "README.md"} <= files
    assert "model.safetensors.index.json" in files


@pytest.mark.e2e
@pytest.mark.skipif(PYTHON is None, reason="TRANSFORMERS_PYTHON names no interpreter")
def test_transformers_opens_it_and_generates(trained):
    from mindspeed_ms import AutoModelForCausalLM, AutoTokenizer

    kept = trained / "theirs.npz"
    result = json.loads(
        run("tools/check_with_transformers.py", trained / "back", "--save", kept, python=PYTHON)
    )
    assert (result["model"], result["vocabulary"]) == ("LlamaForCausalLM", 1003)
    tokenizer = AutoTokenizer.from_pretrained(trained / "back")
    assert tokenizer("The lamp is")["input_ids"] == result["ids"]
    theirs = np.load(kept)
    ours = AutoModelForCausalLM.from_pretrained(trained / "back")(theirs["ids"])
    np.testing.assert_allclose(ours.asnumpy(), theirs["logits"], atol=2e-5)
    assert theirs["tokens"].shape[1] > len(result["ids"])
