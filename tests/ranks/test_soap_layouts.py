# SPDX-License-Identifier: Apache-2.0
"""SOAP has the same numbers in every layout, and its states continue in another one."""

import numpy as np
import pytest
from test_teacher_layouts import LLAMA, RECORDED, replay, tempfile

from mindspeed_ms.command.convert import main

pytestmark = pytest.mark.ranks
STEPS = 4
SOAP = "--optimizer soap --adam-beta2 0.95 --clip-grad 0.5"


def worker(flags, steps):
    """Losses and norms."""
    with tempfile.TemporaryDirectory() as cache:
        found = replay(f"{RECORDED['common']} {LLAMA} {SOAP} {flags}", steps, cache)
    return [(step.losses["lm loss"], step.grad_norm) for step in found]


def run(dist_run, ranks, flags, steps=STEPS):
    return dist_run(worker, ranks=ranks, timeout=240.0, flags=flags, steps=steps)[-1]


def close(found, wanted, layout=""):
    """A rounding error of a gradient grows 1e4 times while eigenbases have seen few gradients."""
    np.testing.assert_allclose(found, wanted, rtol=5e-3, err_msg=layout)
    np.testing.assert_allclose(found[:3], wanted[:3], rtol=2e-3, err_msg=layout)


def test_soap_is_the_same_in_every_layout_and_continues_in_another(dist_run, tmp_path, capsys):
    alone = run(dist_run, 1, "")
    usual = run(dist_run, 1, "--optimizer adam")
    assert np.abs(np.array(alone) / usual - 1.0).max() > 0.05
    for flags in (
        "--tensor-model-parallel-size 2 --sequence-parallel",
        "--zero-level z3",
        "--pipeline-model-parallel-size 2",
    ):
        close(run(dist_run, 2, flags), alone, flags)
    sharded = "--use-distributed-optimizer"
    saved = run(dist_run, 2, f"{sharded} --save {tmp_path} --save-interval 2")
    close(saved, alone, sharded)
    load = f"--load {tmp_path} --ckpt-step 2"
    assert run(dist_run, 2, f"{load} {sharded}")[-2:] == saved[-2:]
    copy = tmp_path / "copy"
    options = ["--ckpt-step", "2", "--no-verify"]
    assert main(["convert", str(tmp_path), str(copy), *options]) == 0
    assert run(dist_run, 2, f"--load {copy} {sharded}")[-2:] == saved[-2:]
    theirs = ["convert", str(tmp_path), str(tmp_path / "theirs"), "--to", "megatron", *options]
    with pytest.raises(SystemExit, match="2"):
        main(theirs)
    assert "convert the weights with --no-optimizer" in capsys.readouterr().err
    assert main([*theirs, "--no-optimizer"]) == 0
    for ranks, flags in ((2, "--tensor-model-parallel-size 2"), (1, "")):
        close(run(dist_run, ranks, f"{load} {flags}")[-2:], saved[-2:], flags)
