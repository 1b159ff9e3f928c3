# SPDX-License-Identifier: Apache-2.0
"""Runs in one process after one another and side by side, in other layouts. Two ranks."""

import errno
import gc
import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest
from run_builder import configuration, open_run, provider, traces, trained

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.dist_checkpointing import saver
from mindspeed_ms.engine.errors import RunFailure
from mindspeed_ms.engine.run import Run, StepFunctions

pytestmark = pytest.mark.ranks

DROPOUT = ("--attention-dropout", "0.1", "--hidden-dropout", "0.1")
TP = ("--tensor-model-parallel-size", "2", "--sequence-parallel", *DROPOUT)
PP = ("--pipeline-model-parallel-size", "2", *DROPOUT)
DP = ("--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather", *DROPOUT)
SMALL = (*PP, "--num-layers", "2", "--global-batch-size", "4", "--hidden-size", "32")


class Stop(Exception):
    """Raised by a user's own function."""


def stop(step):
    if step.iteration == 2:
        raise Stop


def chain_worker(folder):
    """What the runs trained, and whether each left the process as it was."""
    tempfile.tempdir = f"{folder}/temporary{comm.get_rank()}"  # where nobody else makes files
    Path(tempfile.tempdir).mkdir()
    try:
        return runs_and_traces(folder)
    finally:
        tempfile.tempdir = None


def runs_and_traces(folder):
    logging.getLogger("mindspeed_ms").setLevel(logging.WARNING)
    trained(*TP), trained(*PP), trained(*DP)  # what is made once per process
    gc.collect()
    before, runs, clean = traces(), [], []
    for flags in (TP, PP, SMALL, DP, TP, PP, SMALL, DP):
        runs.append(trained(*flags))
        clean.append(traces() == before)
    save = ("--save", folder, "--save-interval", "1", "--async-save")
    for flags in (TP, PP, DP):
        with pytest.raises(Stop):
            trained(*flags, *save, on_step=stop)
        clean.append(traces() == before)
        runs.append(trained(*flags))
    return runs, clean


def test_layouts_follow_one_another(dist_run, tmp_path):
    for runs, clean in dist_run(chain_worker, ranks=2, timeout=240.0, folder=str(tmp_path)):
        assert all(len(steps) == 3 for steps in runs)
        tp, pp, small, dp, *again = runs
        assert again == [tp, pp, small, dp, tp, pp, dp]
        assert all(clean), clean


def side_by_side_worker():
    """Runs in three layouts that take turns, and the same alone."""
    layouts = (TP, PP, DP)
    alone = [trained(*flags) for flags in layouts]
    opened = [open_run(*flags) for flags in layouts]
    sizes = []
    for _ in range(3):
        for run, _ in opened:
            run.train(1)
            with run.active():
                sizes.append(
                    (
                        parallel_state.get_tensor_model_parallel_world_size(),
                        parallel_state.get_pipeline_model_parallel_world_size(),
                        parallel_state.get_data_parallel_world_size(),
                    )
                )
    for run, _ in opened:
        run.close()
    return alone, [steps for _, steps in opened], sizes, traces()["groups"]


def test_layouts_live_side_by_side(dist_run):
    for alone, together, sizes, has_groups in dist_run(side_by_side_worker, ranks=2, timeout=180.0):
        assert together == alone
        assert sizes == [(2, 1, 1), (1, 2, 1), (1, 1, 2)] * 3
        assert not has_groups


def loader_worker(folder):
    """Losses of a run, and of the same in two parts; only the first rank of the group reads."""
    rows = [{"input_ids": np.full((1, 17), number % 60)} for number in range(30)]
    losses = []
    for flags, until in (
        ((), None),
        (("--save", folder, "--save-interval", "100"), 2),
        (("--load", folder), None),
    ):
        steps = []
        run = Run(
            configuration(*TP, "--train-iters", "5", *flags),
            provider,
            train_data_loader=rows if comm.get_rank() == 0 else None,
            functions=StepFunctions(on_step=lambda step, to=steps: to.append(step.losses)),
        )
        with run:
            run.train(until)
            if until:
                run.save()
        losses.append(steps)
    return losses


def test_a_shared_loader_goes_on_where_it_stopped(dist_run, tmp_path):
    for straight, first, second in dist_run(loader_worker, ranks=2, folder=str(tmp_path)):
        assert len(straight) == 5 and first + second == straight


def failing_save_worker(folder):
    """How a run ends whose second rank cannot write a file, and what is left."""
    original, calls = saver.safetensors.write_file, []

    def write_file(path, entries):
        calls.append(path)
        if len(calls) == 2 and comm.get_rank() == 1:
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, entries)

    saver.safetensors.write_file = write_file
    try:
        with pytest.raises(RunFailure) as failure:
            trained(*DP, "--save", folder, "--save-interval", "1")
    finally:
        saver.safetensors.write_file = original
    comm.barrier()
    return str(failure.value), sorted(path.name for path in Path(folder).rglob("*"))


def test_a_save_that_fails_on_one_rank_fails_on_all(dist_run, tmp_path):
    for text, left in dist_run(failing_save_worker, ranks=2, folder=str(tmp_path)):
        assert "iteration 2 could not be written (rank 1: OSError: [Errno 28] No space" in text
        assert "rank 0:" not in text and "the newest complete one is iteration 1" in text
        assert left == [
            *("config.yaml", "index.json", "iter_0000001", "latest_checkpointed_iteration.txt"),
            *("rank_00000.safetensors", "rank_00001.safetensors", "run_record.jsonl"),
        ]
