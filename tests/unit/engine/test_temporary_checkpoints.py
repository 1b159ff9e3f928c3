# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that the next one replaces, beside those that stay."""

import pytest
from run_builder import trained

from mindspeed_ms.training.arguments import parse_args

EVERY = ("--train-iters", "7", "--save-interval", "4", "--non-persistent-save-interval", "2")


def saved(folder):
    return sorted(int(path.name.split("_")[-1]) for path in folder.glob("iter_*"))


@pytest.mark.parametrize("more", [(), ("--async-save",)], ids=["", "async"])
def test_the_next_one_replaces_them(tmp_path, more):
    there = []
    save = ("--save", str(tmp_path), "--non-persistent-ckpt-type", "global", *more)
    trained(*EVERY, *save, on_step=lambda step: there.append(saved(tmp_path)))
    if not more:  # seen at the end of each step, before its own checkpoint
        assert there == [[], [], [2], [2], [4], [4], [4, 6]]
    assert saved(tmp_path) == [4, 7]


def test_a_run_goes_on_from_the_newest(tmp_path):
    whole = trained("--train-iters", "7")
    trained(*EVERY, "--save", str(tmp_path), "--exit-interval", "6")
    assert saved(tmp_path) == [4, 6]
    assert trained(*EVERY, "--load", str(tmp_path)) == whole[6:]


def test_what_is_no_file_is_refused():
    args = parse_args(["--non-persistent-ckpt-type", "in_memory", "--dry-run"])
    assert "a checkpoint is a folder of files" in args.refusals[0]
