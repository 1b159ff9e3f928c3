# SPDX-License-Identifier: Apache-2.0
"""Curves of recorded Megatron runs, in several layouts, read back with TensorBoard's reader."""

import json
from pathlib import Path

import numpy as np
import pytest
from run_builder import trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_golden_runs import GOLDEN

from mindspeed_ms.command import parity

PP = ("--pipeline-model-parallel-size", "2")
DP = ("--use-distributed-optimizer",)
CURVES = ("--log-interval", "1", "--tensorboard-dir")
BATCH = 8
MICRO_BATCHES = 4
USUAL_TAGS = ("lm loss", "grad-norm", "learning-rate", "batch-size", "loss-scale")
LAYER_TAGS = [f"moe/load_balancing_loss_layer_{layer}" for layer in range(4)]
LAYOUTS = {
    "one-rank": (1, "b_llama_hot", []),
    "pp2": (2, "b_llama_hot", ["--pipeline-model-parallel-size", "2"]),
    "moe-ep2": (2, "g_moe", ["--expert-model-parallel-size", "2", "--moe-per-layer-logging"]),
}


def replay_worker(case, flags):
    return parity.replay(GOLDEN, case, flags).passed


@pytest.mark.parametrize(("ranks", "case", "flags"), LAYOUTS.values(), ids=list(LAYOUTS))
def test_curves_of_a_recorded_run(dist_run, tmp_path, ranks, case, flags):
    flags = [*flags, "--tensorboard-dir", str(tmp_path)]
    assert all(dist_run(replay_worker, ranks=ranks, timeout=300.0, case=case, flags=flags))
    assert len(list(Path(tmp_path).glob("events*"))) == 1  # one rank writes
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    recorded = json.loads((GOLDEN / "runs" / f"{case}.json").read_text(encoding="utf-8"))
    _compare_with_megatrons_log(events, recorded)
    tags = {tag for name in USUAL_TAGS for tag in (name, f"{name} vs samples")}
    if case == "g_moe":
        tags |= {"load_balancing_loss", *LAYER_TAGS}
        _compare_balance_losses(events, recorded)
    assert set(events.Tags()["scalars"]) == tags


def _compare_with_megatrons_log(events, recorded):
    """Names, steps and values on both axes are those of Megatron's own run."""
    count = len(recorded["lm_loss"])
    expected = {
        "lm loss": (recorded["lm_loss"], {"atol": 1e-5}),
        "grad-norm": (recorded["grad_norm"], {"rtol": 1e-4}),
        "learning-rate": (recorded["learning_rate"], {"rtol": 1e-6}),
        "batch-size": ([BATCH] * count, {}),
        "loss-scale": ([1.0] * count, {}),
    }
    assert set(expected) == set(USUAL_TAGS)
    for tag, (values, tolerance) in expected.items():
        points, on_samples = events.Scalars(tag), events.Scalars(f"{tag} vs samples")
        written = [point.value for point in points]
        np.testing.assert_allclose(written, values, **{"rtol": 0, **tolerance}, err_msg=tag)
        assert [point.step for point in points] == list(range(1, count + 1)), tag
        assert [point.step for point in on_samples] == [BATCH * (n + 1) for n in range(count)], tag
        assert [point.value for point in on_samples] == written, tag


def _compare_balance_losses(events, recorded):
    per_layer = np.array([[point.value for point in events.Scalars(tag)] for tag in LAYER_TAGS])
    mean = [point.value for point in events.Scalars("load_balancing_loss")]
    np.testing.assert_allclose(per_layer.mean(axis=0), mean, rtol=1e-5)
    (losses,) = recorded["other_losses"].values()
    # Recorded as summed over micro-batches; Megatron writes their mean.
    per_microbatch = np.array(losses) / MICRO_BATCHES
    np.testing.assert_allclose(per_layer.T, per_microbatch, rtol=0, atol=1e-5)


def timed_worker(folder):
    trained(*PP, "--timing-log-level", "2", "--log-timers-to-tensorboard", *CURVES, folder)
    trained(*DP, "--timing-log-level", "1", "--timing-log-option", "all", "--log-interval", "3")


STATE_NAMES = ("variance", "variance_sqrt", "momentum", "weight")


def states_worker(folder, flags):
    trained(*flags, "--log-optimizer-states-to-tensorboard", "--log-params-norm", *CURVES, folder)


def test_states_of_the_optimizer_are_the_same_in_every_layout(dist_run, tmp_path):
    found = []
    for name, ranks, flags in (("one", 1, ()), ("pp", 2, PP), ("shared", 2, DP)):
        folder = tmp_path / name
        dist_run(states_worker, ranks=ranks, folder=str(folder), flags=flags)
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        tags = [
            f"optimizer/{one}_{kind}" for one in STATE_NAMES for kind in ("l2", "l1", "abs_max")
        ]
        found.append([[point.value for point in events.Scalars(tag)] for tag in tags])
        norms = [point.value for point in events.Scalars("params-norm")]
        weights = [point.value for point in events.Scalars("optimizer/weight_l2")]
        np.testing.assert_allclose(weights, norms, rtol=1e-5)
        assert min(map(min, found[-1])) > 0
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4)


def test_timers_of_stages(dist_run, tmp_path, capfd):
    dist_run(timed_worker, ranks=2, folder=str(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    passes = {f"{name}-time" for name in ("forward-compute", "backward-compute", "optimizer")}
    assert passes <= tags and "iteration-time" in tags
    assert {"forward-send-time", "forward-recv-time", "backward-recv-time"} <= tags


def profiled_worker(folder, flags):
    window = ("--profile", "--profile-step-start", "2", "--profile-step-end", "2")
    plain = trained(*flags)
    return (
        trained(*flags, *window, "--profile-save-path", folder, "--profile-communication") == plain
    )


@pytest.mark.parametrize("flags", [PP, ("--tensor-model-parallel-size", "2"), DP])
def test_a_profile_shows_all_ranks_on_one_axis(dist_run, tmp_path, flags):
    assert all(dist_run(profiled_worker, ranks=2, folder=str(tmp_path), flags=flags))
    content = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    spans = [event for event in content["traceEvents"] if event["ph"] == "X"]
    first, second = [span for span in spans if span["cat"] == "iterations"]
    assert {first["pid"], second["pid"]} == {0, 1}
    overlap = min(one["ts"] + one["dur"] for one in (first, second)) - max(
        first["ts"], second["ts"]
    )
    assert overlap > 0.5 * first["dur"]
    calls = [span for span in spans if span["cat"] == "communication" and span["args"]]
    assert {span["pid"] for span in calls} == {0, 1}
    for one in calls:
        assert one["args"]["ranks"] == [0, 1]
        parts = one["args"]["waiting (ms)"] + one["args"]["moving (ms)"]
        assert parts == pytest.approx(one["dur"] / 1e3, abs=1e-3)
    table = json.loads((tmp_path / "communication.json").read_text(encoding="utf-8"))
    assert sum(row["bytes"] for row in table) > 0


def test_only_the_named_ranks_are_profiled(dist_run, tmp_path):
    flags = [*DP, "--profile-ranks", "1"]
    assert all(dist_run(profiled_worker, ranks=2, folder=str(tmp_path), flags=flags))
    content = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert {event["pid"] for event in content["traceEvents"]} == {1}
