# SPDX-License-Identifier: Apache-2.0
"""A measured run sets the rates of a plan."""

import json
from dataclasses import replace

import pytest

from mindspeed_ms.planning.calibrate import Measured, calibrated, cpu_device
from mindspeed_ms.planning.plan import make_plan
from mindspeed_ms.planning.timing import Device
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.dry_run import dry_run, measured_run
from mindspeed_ms.training.from_args import init_configs_from_args

SIZES = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --lr 1e-3 "
    "--max-position-embeddings 32 --micro-batch-size 1 --global-batch-size 8 --train-iters 10 "
    "--padded-vocab-size 512"
)
LAYOUTS = ("", "--tensor-model-parallel-size 2", "--pipeline-model-parallel-size 2")


def config_of(words="", world=4):
    args = validate_args(parse_args(f"{SIZES} {words}".split()), world)
    return init_configs_from_args(args).validate(world)


def test_the_measured_run_is_planned_as_long_as_it_took_and_others_in_proportion():
    usual = cpu_device(2, 2**34)
    slow = replace(
        usual,
        tflops=usual.tflops / 5,
        node_bytes_per_second=usual.node_bytes_per_second / 5,
        network_bytes_per_second=usual.network_bytes_per_second / 5,
        memory_bytes_per_second=usual.memory_bytes_per_second / 5,
        pass_seconds=usual.pass_seconds * 5,
    )
    truth = {words: make_plan(config_of(words), 4, slow).step_seconds for words in LAYOUTS}
    seconds = [9.0, 9.0, truth[""], truth[""], 2 * truth[""]]
    device, line = calibrated(Device(), Measured(config_of(), 4, seconds, True, 2))
    for words, expected in truth.items():
        planned = make_plan(config_of(words), 4, device).step_seconds
        assert planned == pytest.approx(expected, rel=1e-6)
    assert "4 ranks: 0.2 times those of such a host" in line


def test_ranks_that_share_cores_take_turns():
    device = cpu_device(2, 2**34)
    pipeline = config_of("--pipeline-model-parallel-size 4")
    crowded = make_plan(pipeline, 4, device)
    roomy = make_plan(pipeline, 4, replace(device, cores=4))
    assert crowded.step_seconds > 1.2 * roomy.step_seconds
    alone = make_plan(config_of(world=1), 1, device)
    assert (
        alone.step_seconds < make_plan(config_of(world=1), 1, replace(device, cores=1)).step_seconds
    )


def test_an_accelerator_keeps_its_relations():
    measured = make_plan(config_of(), 4).step_seconds / 3
    device, line = calibrated(Device(), Measured(config_of(), 4, [measured] * 6, False, 96))
    assert device.tflops == pytest.approx(3 * 376) and device.cores == 0
    assert "3 times those of the usual device" in line


def test_too_few_steps_are_named():
    with pytest.raises(ValueError, match="has 4 steps, of which the first 2 warm up; .* 5"):
        calibrated(Device(), Measured(config_of(), 4, [1.0] * 4, True, 2))


def record(folder, seconds, done=0):
    """Append the entries of a start behind some iterations."""
    start = {
        "kind": "start",
        "iteration": done,
        "world_size": 4,
        "config": config_of().to_dict(),
        "environment": {"device": "cpu", "cores": 2},
    }
    steps = [
        {"kind": "step", "iteration": number, "seconds": each}
        for number, each in enumerate(seconds, done + 1)
    ]
    text = "".join(json.dumps(entry) + "\n" for entry in [start, *steps])
    with open(folder / "run_record.jsonl", "a") as handle:
        handle.write(text)


def test_the_record_of_a_run_is_read(tmp_path, capsys):
    record(tmp_path, [9.0, 8.0, 1.5, 1.5, 1.5])
    assert measured_run(str(tmp_path)).step_seconds == 1.5
    words = f"{SIZES} --dry-run --world-size 4 --calibrate {tmp_path}"
    assert dry_run(parse_args(words.split())) == 0
    text = capsys.readouterr().out
    assert "step: 1.5 s" in text
    assert "assumed: rates of the measured run, whose step took 1.5 s on 4 ranks" in text


def test_of_a_run_that_went_on_the_last_start_counts(tmp_path):
    record(tmp_path, [9.0, 8.0] + [4.0] * 20)
    record(tmp_path, [7.0, 6.0, 1.5, 1.5, 1.5], done=22)
    assert measured_run(str(tmp_path)).step_seconds == 1.5


def test_a_folder_without_a_record_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="has no readable run_record.jsonl .*; give the --save"):
        measured_run(str(tmp_path))
    (tmp_path / "run_record.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no start; give another run"):
        measured_run(str(tmp_path))
