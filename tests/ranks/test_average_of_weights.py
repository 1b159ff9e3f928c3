# SPDX-License-Identifier: Apache-2.0
"""AdamW with a moving average of the weights: its numbers, resumption and conversion."""

import numpy as np
import pytest
from checkpoint_runs import NO_DROPOUT, run, tensors_of
from run_builder import configuration, open_run

from mindspeed_ms.backend import memory
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.planning.memory import element_bytes
from mindspeed_ms.training.conversion import ConvertOptions, convert

EMA = ("--optimizer-selection", "fused_ema_adamw", "--ema-decay", "0.75")


def copies(setup, kind=None):
    parts = setup.optimizer.state_parts()
    chosen = (part.main_param if kind is None else part.state[kind] for part in parts)
    return np.concatenate([memory.as_numpy(one).ravel() for one in chosen]).copy()


@pytest.mark.parametrize("kind", [(), ("--bf16",)], ids=["fp32", "bf16"])
def test_an_average_follows_the_weights(kind):
    seen = []
    run_, steps = open_run(*EMA, *kind, on_step=lambda _: seen.append(copies(run_._setup)))
    with run_:
        expected = copies(run_._setup)
        run_.train()
        for weights in seen:
            expected = np.float32(0.75) * expected + np.float32(0.25) * weights
        np.testing.assert_allclose(copies(run_._setup, "ema_params"), expected, atol=1e-7)
        assert not np.allclose(expected, seen[-1], atol=1e-3)
    plain, others = open_run(*kind)
    with plain:
        plain.train()
    assert steps == others  # the average changes nothing else


def layouts_worker(folder):
    cache, one, two = f"{folder}/cache", f"{folder}/one", f"{folder}/two"
    flags = [*EMA, *NO_DROPOUT, "--save-interval", "2"]
    sharded = [*flags, "--use-distributed-optimizer"]
    tensor = [*flags, "--tensor-model-parallel-size", "2"]
    run("llama", [*sharded, "--save", one, "--exit-interval", "4"], cache)
    run("llama", [*sharded, "--save", two, "--exit-interval", "2"], cache)
    run("llama", [*tensor, "--save", two, "--load", two, "--exit-interval", "4"], cache)


def test_an_average_goes_on_in_another_layout_and_becomes_a_model(dist_run, tmp_path):
    dist_run(layouts_worker, ranks=2, timeout=240.0, folder=str(tmp_path))
    one, two = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two")
    averages = [name for name in one if name.startswith("ema_params.")]
    assert len(averages) > 10 and set(one) == set(two)
    for name in averages:
        np.testing.assert_allclose(one[name], two[name], atol=2e-5)
    convert(tmp_path / "one", tmp_path / "made", ConvertOptions(ema=True, with_optimizer=False))
    made = tensors_of(tmp_path / "made")
    assert set(made) == {name for name in one if "." in name and f"ema_params.{name}" in one}
    for name, weights in made.items():
        assert np.array_equal(weights, one[f"ema_params.{name}"])
    convert(tmp_path / "made", tmp_path / "plain", ConvertOptions(with_optimizer=False))
    with pytest.raises(ValueError, match="holds no moving average of the weights; leave --ema"):
        convert(tmp_path / "plain", tmp_path / "no", ConvertOptions(ema=True))


def test_a_plan_counts_the_average_and_another_rule_has_none():
    config, other = configuration(*EMA), configuration("--use-ema", "--bf16")
    (one, *_) = (
        spec for spec in gpt_spec(config.model_config).by_name.values() if len(spec.shape) == 2
    )
    assert element_bytes(one, config).optimizer == 12
    assert other.optimizer_config.keeps_average
    assert element_bytes(one, configuration()).optimizer == 8
    with pytest.raises((ValueError, SystemExit)):
        configuration(*EMA, "--optimizer", "sgd")
