# SPDX-License-Identifier: Apache-2.0
"""What is taken from a checkpoint and what is not, in one process: flags, heads, vocabularies."""

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from checkpoint_runs import NO_DROPOUT, run

from mindspeed_ms.formats.containers import storage

DROPOUT = "--attention-dropout 0.1 --hidden-dropout 0.1".split()


def chain_worker(model, folder, runs):
    """Results of several runs, one after the other."""
    return [
        run(model, [word.replace("$DIR", folder) for word in flags], f"{folder}/cache")
        for flags in runs
    ]


def chain(dist_run, tmp_path, *runs, model="gpt2", ranks=1):
    return dist_run(
        chain_worker,
        ranks=ranks,
        timeout=120.0,
        model=model,
        folder=str(tmp_path),
        runs=[words.split() if isinstance(words, str) else words for words in runs],
    )[0]


SAVE = "--save $DIR/a --save-interval 2 --exit-interval 4 "
DROP = " ".join(DROPOUT)


def test_each_part_can_be_left_out(dist_run, tmp_path):
    straight, first, plain, no_rng, no_optim, finetune, step, data = chain(
        dist_run,
        tmp_path,
        DROP,
        SAVE + DROP,
        f"--load $DIR/a {DROP}",
        f"--load $DIR/a --no-load-rng {DROP}",
        f"--load $DIR/a --no-load-optim {DROP}",
        f"--load $DIR/a --finetune {DROP}",
        f"--load $DIR/a --ckpt-step 2 {DROP}",
        f"--load $DIR/a --new-dataset {DROP}",
    )
    assert {**first["loss"], **plain["loss"]} == straight["loss"]
    assert "not restored" not in plain["output"]
    assert list(no_rng["loss"]) == [5, 6, 7, 8] and no_rng["loss"][5] != straight["loss"][5]
    assert "not restored: random states (no_load_rng)" in no_rng["output"]
    assert no_rng["lr"][5] == straight["lr"][5]
    assert no_optim["loss"][5] == straight["loss"][5]
    assert no_optim["loss"][7] != straight["loss"][7]
    assert no_optim["lr"][5] == straight["lr"][1]  # Megatron leaves the schedule at its start
    assert "not restored: optimizer state and schedules" in no_optim["output"]
    assert list(finetune["loss"]) == list(range(1, 9))
    assert finetune["loss"][1] < straight["loss"][1] - 0.3
    assert "not restored: iteration, optimizer" in finetune["output"]
    assert list(step["loss"]) == list(range(3, 9))
    assert all(step["loss"][number] == straight["loss"][number] for number in range(3, 9))
    assert "not restored: position in the data" in data["output"]
    assert data["loss"][5] != straight["loss"][5]


def test_schedules_of_the_checkpoint_or_of_the_flags(dist_run, tmp_path):
    plain = " ".join(NO_DROPOUT)
    straight, _, used, overridden = chain(
        dist_run,
        tmp_path,
        plain,
        SAVE + plain,
        f"--load $DIR/a --lr 1e-3 --use-checkpoint-opt_param-scheduler {plain}",
        f"--load $DIR/a --lr 1e-3 --override-opt_param-scheduler {plain}",
    )
    assert used["loss"] == {number: straight["loss"][number] for number in (5, 6, 7, 8)}
    assert used["lr"][6] == straight["lr"][6]
    assert overridden["lr"][6] < straight["lr"][6] / 2


def test_asynchronous_saving_changes_nothing(dist_run, tmp_path):
    straight, first, second = chain(
        dist_run,
        tmp_path,
        DROP,
        f"{SAVE} --async-save --resume-crc-check {DROP}",
        f"--load $DIR/a --resume-crc-check {DROP}",
        ranks=2,
    )
    assert {**first["loss"], **second["loss"]} == straight["loss"]
    assert "successfully saved checkpoint from iteration       4" in first["output"]
    assert "training waited" in first["output"]
    assert storage.complete_iterations(tmp_path / "a") == [2, 4]


def test_mindspore_files_do_as_well(dist_run, tmp_path):
    straight, first, second = chain(
        dist_run, tmp_path, DROP, f"{SAVE} --ckpt-format ckpt {DROP}", f"--load $DIR/a {DROP}"
    )
    assert {**first["loss"], **second["loss"]} == straight["loss"]
    assert list((tmp_path / "a").glob("iter_*/rank_00000.ckpt"))


def test_heads_and_vocabularies_of_other_shapes(dist_run, tmp_path):
    plain = " ".join(NO_DROPOUT)
    base = "--save $DIR/a --exit-interval 4 --save-interval 4 "
    tied, untied, wider = chain(
        dist_run,
        tmp_path,
        base + plain,
        f"--load $DIR/a --finetune --untie-embeddings-and-output-weights {plain}",
        f"--load $DIR/a --make-vocab-size-divisible-by 200 {plain}",
    )
    assert "output_layer.weight was taken from" in untied["output"]
    assert abs(untied["loss"][1] - tied["loss"][4]) < 1.0
    assert "512 rows became 600" in wider["output"]
    assert list(wider["loss"]) == [5, 6, 7, 8]


def refused_worker(folder, runs):
    """Messages of runs that must not start."""
    found = []
    for flags in runs:
        with pytest.raises((ValueError, RuntimeError)) as stop:
            run("gpt2", [word.replace("$DIR", folder) for word in flags], f"{folder}/cache")
        found.append(str(stop.value))
    return found


def test_what_does_not_fit_is_one_line(dist_run, tmp_path):
    plain = " ".join(NO_DROPOUT)
    chain(dist_run, tmp_path, f"--save $DIR/a --save-interval 4 --exit-interval 4 {plain}")
    folder = tmp_path / "a" / "iter_0000004"
    refused = {
        "--load $DIR/nowhere --exit-on-missing-checkpoint": "holds no checkpoint to load",
        "--load $DIR/a --ckpt-step 3": "complete iterations in",
        "--load $DIR/a --hidden-size 64": "of another shape",
        "--load $DIR/a --num-layers 2": "not in the model",
        "--load $DIR/a --num-layers 6": "missing in it",
        "--load $DIR/a --lr 1e-3": "max_lr is 0.001, but the checkpoint",
    }
    results = dist_run(
        refused_worker, ranks=1, folder=str(tmp_path), runs=[words.split() for words in refused]
    )[0]
    for message, (words, part) in zip(results, refused.items(), strict=True):
        assert part in message and "\n" not in message, (words, message)
    file = folder / "rank_00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 8
    file.write_bytes(data)
    flags = ["--load $DIR/a", "--load $DIR/a --resume-crc-check"]
    digest, crc = dist_run(
        refused_worker, ranks=1, folder=str(tmp_path), runs=[words.split() for words in flags]
    )[0]
    assert "differ from what was saved (digest)" in digest and str(file) in digest
    assert "has another checksum" in crc and str(file) in crc


def test_a_start_without_a_checkpoint_is_announced(dist_run, tmp_path):
    plain = " ".join(NO_DROPOUT)
    (result,) = chain(
        dist_run, tmp_path, f"--load $DIR/new --train-iters 1 --lr-warmup-iters 0 {plain}"
    )
    assert "WARNING: could not find a checkpoint" in result["output"]


def signalled_worker(folder):
    """A run that is told to stop in its third iteration."""
    from mindspeed_ms.engine import train_loop

    original = train_loop.train_step

    def step(setup, data):
        report = original(setup, data)
        if report.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return report

    train_loop.train_step = step
    try:
        flags = ["--save", f"{folder}/a", "--save-interval", "100", "--exit-signal-handler"]
        return run("gpt2", [*flags, *NO_DROPOUT], f"{folder}/cache")
    finally:
        train_loop.train_step = original


def test_a_signal_saves_and_stops(dist_run, tmp_path):
    (result,) = dist_run(signalled_worker, ranks=1, folder=str(tmp_path))
    assert list(result["loss"]) == [1, 2, 3]
    assert "exiting program after receiving SIGTERM." in result["output"]
    assert storage.complete_iterations(tmp_path / "a") == [3]


def timed_worker(folder):
    """A run on two ranks; on one of them a minute passes in the third iteration."""
    from types import SimpleNamespace

    from mindspeed_ms.backend import comm
    from mindspeed_ms.engine import stop_conditions, train_loop

    original, later = train_loop.train_step, []

    def step(setup, data):
        report = original(setup, data)
        if report.iteration == 3 and comm.get_rank() == 1:
            later.append(60.0)
        return report

    train_loop.train_step = step
    stop_conditions.time = SimpleNamespace(
        time=lambda: time.time() - age, monotonic=lambda: time.monotonic() + sum(later)
    )
    age = time.time() - psutil.Process().create_time()
    try:
        flags = ["--save", f"{folder}/a", "--save-interval", "100", "--exit-duration-in-mins", "1"]
        return run("gpt2", [*flags, *NO_DROPOUT], f"{folder}/cache")
    finally:
        train_loop.train_step, stop_conditions.time = original, time


def test_a_time_limit_saves_and_stops_all_ranks(dist_run, tmp_path):
    results = dist_run(timed_worker, ranks=2, folder=str(tmp_path))
    assert [list(result["loss"]) for result in results] == [[1, 2, 3], [1, 2, 3]]
    assert re.search(r"exiting program after 1\.\d+ minutes", "".join(r["output"] for r in results))
    assert storage.complete_iterations(tmp_path / "a") == [3]


def test_the_last_iteration_is_saved(dist_run, tmp_path):
    plain = " ".join(NO_DROPOUT)
    chain(
        dist_run,
        tmp_path,
        f"--save $DIR/a --save-interval 5 --keep-checkpoint-max 1 {plain}",
        f"--save $DIR/b --save-interval 3 --train-iters 6 --save-retain-interval 3 {plain}",
    )
    assert storage.complete_iterations(tmp_path / "a") == [8]
    assert storage.complete_iterations(tmp_path / "b") == [3, 6]


def test_model_sizes_can_come_from_the_checkpoint(dist_run, tmp_path):
    plain = " ".join(NO_DROPOUT)
    sizes = "--num-layers 2 --hidden-size 16 --num-attention-heads 2"
    first, second = chain(
        dist_run,
        tmp_path,
        f"--save $DIR/a --save-interval 4 --exit-interval 4 {plain}",
        f"--load $DIR/a --use-checkpoint-args {sizes} {plain}",
        model="llama",
    )
    assert list(second["loss"]) == [5, 6, 7, 8]
    assert Path(tmp_path / "a" / "iter_0000004" / "config.yaml").is_file()
