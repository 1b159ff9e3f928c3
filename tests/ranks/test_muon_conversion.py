# SPDX-License-Identifier: Apache-2.0
"""Muon's states go into Megatron's files and back."""

import pytest
from test_teacher_layouts import LLAMA, RECORDED, replay, tempfile

from mindspeed_ms.command.convert import main
from mindspeed_ms.formats.containers.torch_file import TorchFile

pytestmark = pytest.mark.ranks


def worker(flags, steps):
    """Losses and norms."""
    with tempfile.TemporaryDirectory() as cache:
        found = replay(f"{RECORDED['common']} {LLAMA} --optimizer muon {flags}", steps, cache)
    return [(step.losses["lm loss"], step.grad_norm) for step in found]


def run(dist_run, ranks, flags, steps=4):
    return dist_run(worker, ranks=ranks, timeout=240.0, flags=flags, steps=steps)[-1]


def test_muon_continues_from_megatrons_files(dist_run, tmp_path, capsys):
    usual = run(dist_run, 1, f"--save {tmp_path} --save-interval 2")
    theirs = tmp_path / "theirs"
    words = ["convert", str(tmp_path), str(theirs), "--ckpt-step", "2", "--no-verify"]
    words += ["--to", "megatron", "--tensor-model-parallel-size", "2"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--use-distributed-optimizer"])
    assert "--no-use-distributed-optimizer" in capsys.readouterr().err
    assert main(words) == 0
    # Two chained optimizers, as Megatron-core has them: of matrices, and of the rest.
    (path,) = theirs.glob("iter_*/mp_rank_00/model_optim_rng.pt")
    muon, adam = (one["state"] for one in TorchFile(path).content["optimizer"])
    assert all("momentum_buffer" in state for state in muon.values())
    assert all("exp_avg" in state for state in adam.values())
    found = run(dist_run, 1, f"--load {theirs} --no-load-rng")
    assert found[-2:] == usual[2:]
