# SPDX-License-Identifier: Apache-2.0
"""Lengths of a run and of its learning rate in tokens; a file that ends a run."""

import pytest
from run_builder import open_run

from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.dry_run import resolve

SMALL = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 8 --lr 1e-3 "
    "--max-position-embeddings 8 --micro-batch-size 1 --global-batch-size 4 --vocab-size 99 "
    "--tokenizer-type NullTokenizer --dry-run"
).split()


def config(words):
    return resolve(parse_args([*SMALL, *words.split()])).config


@pytest.mark.parametrize(
    ("words", "samples"),
    [
        ("--train-samples 1000 --train-tokens 640", 80),
        ("--train-samples 1000 --train-tokens 641", 84),  # the step that reaches them
        ("--train-samples 40 --train-tokens 640", 40),
        ("--train-tokens 640", 80),
    ],
)
def test_tokens_end_a_run_in_samples(words, samples):
    assert config(words).training_config.train_samples == samples


def test_tokens_end_a_run_in_steps():
    assert config("--train-iters 50 --train-tokens 640").training_config.training_iters == 20
    assert config("--train-iters 5 --train-tokens 640").training_config.training_iters == 5


def test_the_learning_rate_goes_by_tokens():
    tokens = "--lr-decay-tokens 640 --lr-warmup-tokens 65"
    rate = config(f"--train-samples 1000 {tokens}").optimizer_config
    assert (rate.lr_decay_samples, rate.lr_warmup_samples) == (80, 9)
    rate = config(f"--train-iters 100 {tokens}").optimizer_config
    assert (rate.lr_decay_iters, rate.lr_warmup_iters) == (20, 3)


def test_tokens_and_steps_need_a_batch():
    with pytest.raises(ValueError, match="need a batch of one known size"):
        config("--train-iters 5 --train-tokens 640 --rampup-batch-size 2 2 10")


def test_a_file_ends_a_run(tmp_path, capsys):
    switch, saved = tmp_path / "stop", tmp_path / "saved"

    def stop(step):
        if step.iteration == 2:
            switch.touch()

    flags = ("--kill-switch-path", str(switch), "--save", str(saved), "--save-interval", "100")
    run, steps = open_run(*flags, on_step=stop)
    with run:
        run.train()
    assert len(steps) == 2
    assert (saved / "latest_checkpointed_iteration.txt").read_text() == "2"
    assert f"exiting program, as {switch} is there" in capsys.readouterr().out
    run, steps = open_run(*flags, "--load", str(saved))
    with run:
        run.train()
    assert not steps  # the file is still there
    switch.unlink()
    run, steps = open_run(*flags, "--load", str(saved))
    with run:
        run.train()
    assert len(steps) == 1
