# SPDX-License-Identifier: Apache-2.0
"""Megatron-LM's own runs, replayed over pipeline stages, virtual stages and recomputation."""

from pathlib import Path

import pytest

from mindspeed_ms.command import parity

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def pp(stages, *more):
    return ["--pipeline-model-parallel-size", str(stages), *more]


TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
VPP2 = ["--num-layers-per-virtual-pipeline-stage", "1"]
CHUNKS2 = ["--num-virtual-stages-per-pipeline-rank", "2"]
RUNS = {
    # d_llama_pp2_hot, Megatron's own pp2 run, equals b_llama_hot to 4.8e-7.
    "llama-pp2": (2, "b_llama_hot", pp(2)),
    "llama-pp2-vpp2": (2, "b_llama_hot", pp(2, *VPP2)),
    "llama-pp4": (4, "b_llama_hot", pp(4)),
    "llama-pp2-tp2-sp": (4, "b_llama_hot", pp(2, *TP2_SP)),
    "llama-pp2-dp2": (4, "b_llama_hot", pp(2)),
    "llama-pp2-uneven": (2, "b_llama_hot", pp(2, "--num-layer-list", "[1,3]")),
    "llama-pp2-vpp2-lists": (
        4,
        "b_llama_hot",
        pp(
            2,
            *TP2_SP,
            *CHUNKS2,
            *("--num-layer-list", "[[1,1],[1,1]]", "--recompute", "[[1,0],[0,1]]"),
            *("--select-recompute", "[[1,1],[1,1]]", "--select-comm-recompute", "[[0,1],[1,0]]"),
        ),
    ),
    "gpt2-tied-pp2": (2, "a_gpt2_hot", pp(2)),
    "gpt2-tied-pp4": (4, "a_gpt2_hot", pp(4)),
    "gpt2-tied-pp2-vpp2-dp2": (4, "a_gpt2_hot", pp(2, *CHUNKS2)),
    "gpt2-tied-pp2-tp2": (4, "a_gpt2_hot", pp(2, "--tensor-model-parallel-size", "2")),
    "gpt2-tied-pp2-block": (
        2,
        "a_gpt2_hot",
        pp(
            2,
            *("--recompute-granularity", "full", "--recompute-method", "block"),
            *("--recompute-num-layers", "1"),
        ),
    ),
    "gpt2-selective": (
        1,
        "a_gpt2_hot",
        [
            *("--recompute-granularity", "selective"),
            *("--recompute-modules", "core_attn", "mlp_act", "layernorm"),
        ],
    ),
    "llama-uniform": (
        1,
        "b_llama_hot",
        [
            *("--recompute-granularity", "full", "--recompute-method", "uniform"),
            *("--recompute-num-layers", "3"),
        ],
    ),
}


def replay_worker(case, flags):
    comparison = parity.replay(GOLDEN, case, flags)
    return {
        "passed": comparison.passed,
        "loss": comparison.worst_loss,
        "grad_norm": comparison.worst_grad_norm,
        "steps": len(comparison.steps),
    }


@pytest.mark.parametrize(
    ("ranks", "case", "flags"), [pytest.param(*run, id=name) for name, run in RUNS.items()]
)
def test_forty_iterations_follow_megatron(dist_run, ranks, case, flags):
    for result in dist_run(replay_worker, ranks=ranks, timeout=400.0, case=case, flags=flags):
        assert result["passed"] and result["steps"] == 40, result
