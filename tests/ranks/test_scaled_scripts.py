# SPDX-License-Identifier: Apache-2.0
"""Launch scripts of Megatron and MindSpeed, shrunk with ``--scale-down``, train two steps."""

import math

import pipeline_runs
import pytest
from launch_corpus import FORKS, PUBLISHED, SCRIPTS, expanded

from mindspeed_ms.backend import comm
from mindspeed_ms.config import unsupported_reason
from mindspeed_ms.core import parallel_state
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.training import initialize_megatron, pretrain
from mindspeed_ms.training.arguments import parse_args

pytestmark = pytest.mark.ranks


def run_worker(names):
    """Script -> two losses, or None when a feature is missing. Losses are the last stage's."""
    found = {}
    for name in names:
        script = SCRIPTS.get(name) or (PUBLISHED | FORKS)[name].split()
        words = [*expanded(script), "--scale-down"]
        if parse_args([*words, "--dry-run"]).refusals:
            found[name] = None
            continue
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        initialize_megatron(argv=[*words, "--logging-level", "40"])
        if unsupported_reason(get_all_config()):
            found[name] = None
            continue
        steps = []
        pretrain(None, pipeline_runs.provider, all_config=get_all_config(), on_step=steps.append)
        found[name] = [step.losses["lm loss"] for step in steps]
    return found, comm.get_rank()


REFUSED = (
    # both branches of a shell's if: mock data, and a path
    *("gptoss/02_train.sh", "train_llama3_8b_fsdp_h100_fp8.sh", "train_llama3_8b_h100_fp8.sh"),
    "fused_ema_adamw.sh",
    "deepseek2_lite/tune_deepseek2_lite_16b_full_ptd",
)
"""Ends of the names of scripts that no run takes."""


def check(results, least):
    found, _ = results[-1]
    trained = {name: losses for name, losses in found.items() if losses is not None}
    assert all(name.endswith(REFUSED) for name in found.keys() - trained.keys())
    assert len(trained) >= least
    for name, losses in trained.items():
        assert len(losses) == 2, name
        assert all(math.isfinite(loss) for loss in losses), name


def every(count, first=0):
    return list(SCRIPTS)[first::count]


def test_some_scripts_train_on_one_rank(dist_run):
    check(dist_run(run_worker, ranks=1, timeout=180.0, names=every(64)), 4)


def test_scripts_of_published_models_train_on_one_rank(dist_run):
    check(dist_run(run_worker, ranks=1, timeout=180.0, names=list(PUBLISHED)), 13)


def test_some_scripts_of_forks_train_on_one_rank(dist_run):
    check(dist_run(run_worker, ranks=1, timeout=180.0, names=list(FORKS)[::6]), 4)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 4])
def test_all_scripts_of_forks_train(dist_run, ranks):
    check(dist_run(run_worker, ranks=ranks, timeout=280.0, names=list(FORKS)), 20)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_all_scripts_train_on_one_rank(dist_run, part):
    check(dist_run(run_worker, ranks=1, timeout=280.0, names=every(8, part)), 30)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_some_scripts_train_on_several_ranks(dist_run, ranks):
    check(dist_run(run_worker, ranks=ranks, timeout=280.0, names=every(24, 5)), 8)
