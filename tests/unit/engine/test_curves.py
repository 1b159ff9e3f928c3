# SPDX-License-Identifier: Apache-2.0
"""Curves and log files of a run, read back with other programs' readers. One rank."""

import csv
import importlib
import json
import math
import shutil
import time

import numpy as np
import pytest
from run_builder import configuration, open_run, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mindspeed_ms.engine.observe import extras, log_file, observer, record, tensorboard
from mindspeed_ms.engine.observe.figures import Figures
from mindspeed_ms.engine.observe.record import FILE_NAME, RunRecord, read_record
from mindspeed_ms.engine.start import refuse_unsupported
from mindspeed_ms.engine.step_report import StepReport

SAVE = ("--save-interval", "2")
EVALUATED = ("--eval-iters", "1", "--eval-interval", "2")
BOTH_AXES = ("learning-rate", "batch-size", "lm loss", "loss-scale", "grad-norm")
ALL_FLAGS = (
    *("--log-timers-to-tensorboard", "--log-memory-to-tensorboard", "--log-throughput"),
    *("--log-validation-ppl-to-tensorboard", "--log-world-size-to-tensorboard"),
    *("--log-params-norm", "--log-num-zeros-in-grad", "--log-interval", "1", *EVALUATED),
)
BY_FLAGS = (
    *("iteration-time", "throughput", "mem-reserved-bytes", "mem-allocated-bytes"),
    *("mem-max-allocated-bytes", "world-size", "params-norm", "num-zeros"),
    *("lm loss validation", "lm loss validation ppl"),
)


def curves(folder):
    """Tag -> [(x, value)], read by TensorBoard."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_megatrons_usual_tags_over_both_axes(tmp_path):
    steps = trained("--tensorboard-dir", str(tmp_path))
    found = curves(tmp_path)
    assert set(found) == {*BOTH_AXES, *(f"{tag} vs samples" for tag in BOTH_AXES)}
    losses, norms = zip(*steps, strict=True)
    assert [x for x, _ in found["lm loss"]] == [1, 2, 3]
    assert [x for x, _ in found["grad-norm vs samples"]] == [8, 16, 24]
    np.testing.assert_allclose([value for _, value in found["lm loss"]], losses, rtol=1e-6)
    np.testing.assert_allclose([value for _, value in found["grad-norm"]], norms, rtol=1e-6)


def test_each_flag_brings_its_tags(tmp_path):
    run, _ = open_run("--tensorboard-dir", str(tmp_path), *ALL_FLAGS)
    with run:
        run.train()
        run.evaluate("test")
    found = curves(tmp_path)
    assert set(BY_FLAGS) <= set(found)
    for tag in ("params-norm", "num-zeros", "world-size", "lm loss validation ppl"):
        assert len(found[f"{tag} vs samples"]) == len(found[tag]) > 0
    assert found["mem-max-allocated-bytes"][0][1] > 1e6
    (at, loss), (_, ppl) = found["lm loss validation"][0], found["lm loss validation ppl"][0]
    assert at == 2 and ppl == pytest.approx(math.exp(loss), rel=1e-5)
    assert [x for x, _ in found["lm loss test"]] == [3]


def test_flags_take_tags_away_and_thin_them_out(tmp_path):
    trained(
        *("--tensorboard-dir", str(tmp_path), "--tensorboard-log-interval", "2"),
        *("--no-log-loss-scale-to-tensorboard", "--no-log-learning-rate-to-tensorboard"),
    )
    found = curves(tmp_path)
    assert {tag for tag in BOTH_AXES if tag in found} == {"batch-size", "lm loss", "grad-norm"}
    assert [x for x, _ in found["lm loss"]] == [2]


def test_layers_losses_carry_megatrons_names():
    report = StepReport(
        iteration=4,
        losses={"lm loss": 2.0, "load_balancing_loss": 0.5, "mtp_1 loss": 3.0},
        grad_norm=None,
        num_zeros=None,
        learning_rate=0.1,
        skipped=False,
        seconds=1.0,
        layer_losses={"load_balancing_loss": np.array([0.25, 0.75]), "mtp_1 loss": np.array([3.0])},
        consumed_samples=32,
    )
    training = configuration().training_config
    figures = observer.step_figures(report, training, world_size=1, per_layer=True)
    assert figures.by_iteration["moe/load_balancing_loss_layer_1"] == 0.75
    assert figures.by_iteration["mtp_1 loss"] == 3.0
    assert "moe/mtp_1 loss_layer_0" not in figures.by_iteration
    assert {"load_balancing_loss", "mtp_1 loss"}.isdisjoint(figures.by_samples)


def interrupted(tmp_path, *flags):
    """Three iterations, of which the third is done again."""
    save = ("--save", str(tmp_path / "run"), *SAVE, *flags)
    run, _ = open_run(*save, *EVALUATED)
    with run:
        run.train()
    more, _ = open_run(*save, "--load", str(tmp_path / "run"), "--ckpt-step", "2", *EVALUATED)
    with more:
        more.train()


def test_a_resumed_run_has_no_step_twice(tmp_path):
    interrupted(tmp_path, "--tensorboard-dir", str(tmp_path / "curves"))
    for tag, points in curves(tmp_path / "curves").items():
        places = [x for x, _ in points]
        assert places == sorted(set(places)), tag
    assert [x for x, _ in curves(tmp_path / "curves")["lm loss"]] == [1, 2, 3]
    assert [x for x, _ in curves(tmp_path / "curves")["lm loss vs samples"]] == [8, 16, 24]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_log_file_has_one_line_per_iteration(tmp_path, kind):
    path = tmp_path / "logs" / f"log.{kind}"
    interrupted(tmp_path, "--log-file", str(path))
    with path.open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle) if kind == "csv" else map(json.loads, handle))
    assert [int(row["iteration"]) for row in rows] == [1, 2, 3]
    assert [int(row["consumed_samples"]) for row in rows] == [8, 16, 24]
    assert float(rows[1]["lm loss validation"]) > 0
    assert not rows[0].get("lm loss validation")
    assert float(rows[2]["grad_norm"]) > 0 and float(rows[2]["tokens_per_second"]) > 0


def test_a_line_that_a_killed_run_left_incomplete_is_dropped(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("iteration,lm loss\n1,4.5\n2,4.", encoding="utf-8")
    log = observer.LogFile(path, after=5)
    log.write({"iteration": 2, "lm loss": 4.25, "grad_norm": 1.0})
    log.close()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines == ["iteration,lm loss,grad_norm", "1,4.5,", "2,4.25,1.0"]


def test_a_part_of_an_entry_that_a_killed_run_left_is_dropped(tmp_path):
    first = RunRecord(tmp_path, {"iteration": 0})
    first.add("step", iteration=1)
    first.close()
    with (tmp_path / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write('{"kind": "step", "iter')
    second = RunRecord(tmp_path, {"iteration": 1})
    second.add("step", iteration=2)
    second.close()
    kinds = [(entry["kind"], entry["iteration"]) for entry in read_record(tmp_path)]
    assert kinds == [("start", 0), ("step", 1), ("start", 1), ("step", 2)]


@pytest.mark.parametrize("step", [0, 1, 127, 128, 300, 2**31, 2**53])
def test_events_are_encoded_as_the_library_does(step):
    event_class = importlib.import_module("tensorboardX.proto.event_pb2").Event
    values = {
        **{"lm loss": 6.25, "a": 0.1, "é" * 100: -1e-30, "large": 1e300, "small": -1e300},
        **{"zero": 0.0, "infinite": float("inf"), "x" * 300: 3.4028234e38},
    }
    event = event_class.FromString(tensorboard.scalar_event(values, step, 1234.5))
    assert (event.step, event.wall_time) == (step, 1234.5)
    with np.errstate(over="ignore"):
        for value, (tag, number) in zip(event.summary.value, values.items(), strict=True):
            assert (value.tag, value.simple_value) == (tag, np.float32(number))
    nan = event_class.FromString(tensorboard.scalar_event({"n": float("nan")}, step, 0.0))
    assert np.isnan(nan.summary.value[0].simple_value)


def test_a_full_disk_ends_the_curves_with_one_line(tmp_path, monkeypatch):
    writer = tensorboard.TensorBoardWriter(tmp_path, 1)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._file, "write", full)
    figures = Figures(1, 8, {"lm loss": 1.0}, {"lm loss": 1.0})
    with pytest.raises(OSError, match="No space"):
        for _ in range(500):
            writer.write(figures)
            time.sleep(0.01)
    writer.close()
    late = tensorboard.TensorBoardWriter(tmp_path, 1000)
    late.write(figures)  # it waits until the end
    monkeypatch.setattr(late._file, "write", full)
    with pytest.raises(OSError, match="No space") as told:
        late.close()
    assert told.value.filename.startswith(str(tmp_path / "events.out.tfevents."))


def test_an_event_file_cut_within_a_record_can_be_continued(tmp_path):
    trained("--tensorboard-dir", str(tmp_path))
    (file,) = tmp_path.glob("events*")
    file.write_bytes(file.read_bytes()[:-3])
    observer.cut_events(tmp_path, 1, 8)
    assert [x for x, _ in curves(tmp_path)["lm loss"]] == [1]


def test_the_record_keeps_what_a_report_needs(tmp_path):
    interrupted(tmp_path)
    entries = read_record(tmp_path / "run")
    by_kind = {}
    for entry in entries:
        by_kind.setdefault(entry["kind"], []).append(entry)
    assert [entry["iteration"] for entry in by_kind["step"]] == [1, 2, 3]
    assert [entry["iteration"] for entry in by_kind["checkpoint"]] == [2, 3]
    start = by_kind["start"][-1]
    assert start["iteration"] == 2 and start["world_size"] == 1
    assert start["changed"]["training_config.save_interval"] == 2
    assert start["plan"]["stages"][0]["peak"] > 0 and start["environment"]["mindspore"]


def test_curves_change_no_number(tmp_path):
    plain = trained()
    assert trained("--tensorboard-dir", str(tmp_path), *ALL_FLAGS[:-4]) == plain


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logged = []
    real = wandb.init

    def noting(**settings):
        run = real(**settings)
        send = run.log
        monkeypatch.setattr(
            run, "log", lambda values, step: (logged.append((step, values)), send(values, step))
        )
        return run

    monkeypatch.setattr(wandb, "init", noting)
    folder = tmp_path / "wandb_files"
    trained(
        *("--wandb-project", "tests", "--wandb-exp-name", "small"),
        *("--wandb-save-dir", str(folder), "--log-interval", "1"),
    )
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    steps = [values for _, values in logged if "lm loss" in values]
    assert [values["samples vs steps"] for values in steps] == [8, 16, 24]
    assert set(steps[0]) >= set(BOTH_AXES) and not any("vs samples" in tag for tag in steps[0])


# --- what is missing ------------------------------------------------------------------------------


def without(monkeypatch, package):
    real = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )


def test_missing_tensorboard_is_one_line_at_the_start(tmp_path, monkeypatch, capsys):
    without(monkeypatch, "tensorboardX")
    trained("--tensorboard-dir", str(tmp_path / "curves"))
    output = capsys.readouterr().out
    assert output.count('pip install "mindspeed_ms[tensorboard]"') == 1
    assert output.index("tensorboardX") < output.index("training ...")
    assert not (tmp_path / "curves").exists()


def test_missing_wandb_is_refused(monkeypatch):
    without(monkeypatch, "wandb")
    config = configuration("--wandb-project", "p", "--wandb-exp-name", "n")
    with pytest.raises(ValueError, match=r'wandb_project p .*pip install "mindspeed_ms\[wandb\]"'):
        refuse_unsupported(config)


def test_a_wandb_run_needs_a_name():
    with pytest.raises(ValueError, match="needs wandb_exp_name"):
        configuration("--wandb-project", "p")


def test_a_log_file_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"must end in \.csv or \.jsonl"):
        configuration("--log-file", "log.txt")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rank 0 cannot write .*file.*--tensorboard-dir"):
        trained("--tensorboard-dir", str(tmp_path / "file" / "curves"))


def test_a_full_disk_costs_the_curves_and_not_the_run(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(observer.LogFile, "write", full)
    assert len(trained("--log-file", str(tmp_path / "log.csv"))) == 3
    assert capsys.readouterr().out.count("log file cannot be written any more") == 1


def test_curves_of_another_run_in_the_folder_are_told(tmp_path, capsys):
    trained("--tensorboard-dir", str(tmp_path))
    assert "earlier run" not in capsys.readouterr().out
    trained("--tensorboard-dir", str(tmp_path))
    assert f"{tmp_path} holds curves of an earlier run" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--tensorboard-dir", "--log-file"])
def test_a_file_that_is_removed_meanwhile_is_told(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.setattr(log_file, "_FLUSH_SECONDS", -1.0)
    folder = tmp_path / "curves"
    place = folder if flag == "--tensorboard-dir" else folder / "log.csv"

    def remove(step):
        if step.iteration == 1:
            shutil.rmtree(folder)

    trained(flag, str(place), "--tensorboard-queue-size", "1", on_step=remove)
    assert "No such file or directory" in capsys.readouterr().out


def test_a_record_that_is_removed_begins_again(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "_FLUSH_SECONDS", -1.0)
    written = record.RunRecord(tmp_path / "run", {"ranks": 1})
    written.add("step", iteration=1)
    shutil.rmtree(tmp_path / "run")
    for iteration in (2, 3):
        written.add("step", iteration=iteration)
    written.close()
    lines = (tmp_path / "run" / record.FILE_NAME).read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["start", "step"]
