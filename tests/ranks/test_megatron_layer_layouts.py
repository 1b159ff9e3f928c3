# SPDX-License-Identifier: Apache-2.0
"""Layers of newer kinds over ranks: the runs of Megatron-core, and runs of one rank."""

import json

import megatron_runs
import numpy as np
import pytest
from megatron_runs import DATA, replay

pytestmark = pytest.mark.ranks
RECORDED = json.loads((DATA / "megatron_core" / "layers.json").read_text(encoding="utf-8"))
FEW = 3
TP = "--tensor-model-parallel-size 2"
SP = f"{TP} --sequence-parallel"
PP = "--pipeline-model-parallel-size 2"
CP = "--context-parallel-size 2"
EP = "--expert-model-parallel-size 2"
DENSE = {
    "tp2": (2, TP),
    "tp2-sp": (2, SP),
    "pp2": (2, PP),
    "cp2": (2, CP),
    "tp2-sp-cp2": (4, f"{SP} {CP}"),
}
ULYSSES = {"ulysses2": (2, f"{CP} --context-parallel-algo ulysses_cp_algo")}
SHARED_KEYS = {"tp4": (4, f"{TP[:-1]}4"), "tp4-sp": (4, f"{TP[:-1]}4 --sequence-parallel")}
"""Two ranks for each of two key/value groups."""
EXPERTS = {
    "ep2": (2, EP),
    "tp2-sp-ep2": (2, f"{SP} {EP} --expert-tensor-parallel-size 1"),
    "pp2": (2, PP),
    "tp2-sp-etp2-zero": (2, f"{SP} --use-distributed-optimizer"),
}


def worker(words, iterations, cache):
    steps = replay(words, iterations, cache)
    return [(step.losses["lm loss"], step.grad_norm, dict(step.losses)) for step in steps]


def run(dist_run, ranks, words, cache, iterations=FEW):
    results = dist_run(
        worker, ranks=ranks, timeout=240.0, words=words, iterations=iterations, cache=str(cache)
    )
    return results[-1]


def check(dist_run, cache, name, layout, iterations):
    case, (ranks, flags) = RECORDED["cases"][name], layout
    words = f"{RECORDED['common']} {case['flags']} {flags}"
    for number, (loss, norm, _) in enumerate(run(dist_run, ranks, words, cache, iterations)):
        assert abs(loss - case["loss"][number]) <= 1e-5, number
        assert norm == pytest.approx(case["grad_norm"][number], rel=1e-4), number


SHARDED = {
    "dp2-zero": (2, "--use-distributed-optimizer"),
    "dp2-zero3": (2, "--zero-level z3"),
    "dp2-ulysses2": (4, f"--use-distributed-optimizer {ULYSSES['ulysses2'][1]}"),
}
LAYOUTS = {**DENSE, **ULYSSES, **SHARDED, **SHARED_KEYS, **EXPERTS}
QUICK = [
    ("qk_clip", "dp2-zero"),
    ("attention_output_gate_norms", "tp2-sp"),
    ("attention_output_gate_norms", "tp4-sp"),
    ("gated_delta_net", "tp2-sp-cp2"),
    ("sparse_attention", "tp2-sp-cp2"),
    ("heterogeneous_layers", "tp2-sp"),
]
SLOW = [
    *(
        (name, layout)
        for name in ("attention_output_gate", "qk_l2_norm", "learnable_sinks", "window_skip")
        for layout in DENSE
    ),
    *(
        (name, layout)
        for name in ("qk_clip", "qk_clip_latent")
        for layout in (*DENSE, *SHARDED, "ulysses2")
    ),
    *((name, layout) for name in ("gpt_oss", "llama4", "latent_experts") for layout in EXPERTS),
    *(
        (name, layout)
        for name in ("attention_output_gate_norms", "learnable_sinks", "window_skip")
        for layout in SHARED_KEYS
    ),
    ("gpt_oss", "tp4-sp"),
    *(("gated_delta_net", layout) for layout in (*DENSE, "ulysses2")),
    *(("sparse_attention", layout) for layout in (*DENSE, *SHARDED, "ulysses2")),
    *(("heterogeneous_layers", layout) for layout in (*DENSE, *SHARDED)),
    *(("deepseek_v32", layout) for layout in EXPERTS),
    *(("qwen3_next", layout) for layout in ("tp2-sp-ep2", "pp2", "tp2-sp-etp2-zero")),
]


@pytest.mark.parametrize(("name", "layout"), QUICK)
def test_ranks_repeat_a_run_of_megatron_core(dist_run, tmp_path, name, layout):
    check(dist_run, tmp_path, name, LAYOUTS[layout], FEW)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout"), SLOW)
def test_ranks_repeat_forty_iterations_of_megatron_core(dist_run, tmp_path, name, layout):
    check(dist_run, tmp_path, name, LAYOUTS[layout], 40)


ROUTERS = {
    "quantiles": "--moe-router-load-balancing-type quantile_balancing",
    "groups": (
        "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.01 "
        "--moe-router-num-groups 4 --moe-router-group-topk 2 --moe-router-pre-softmax "
        "--moe-device-level-aux-loss-coeff 0.05 --moe-comm-aux-loss-coeff 0.02 --norm-topk-prob"
    ),
    "softplus": (
        "--moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 0.01 "
        "--moe-router-score-function sqrtsoftplus --moe-router-enable-expert-bias"
    ),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("quantiles", "tp2-sp-ep2"),
        *(
            pytest.param(name, layout, marks=pytest.mark.slow)
            for name in ROUTERS
            for layout in (*EXPERTS, "cp2")
        ),
    ],
)
def test_routers_give_the_same_in_every_layout(dist_run, tmp_path, name, layout):
    flags = (
        f"{RECORDED['common']} --position-embedding-type rope --swiglu --ffn-hidden-size 48 "
        f"--num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 24 {ROUTERS[name]}"
    )
    ranks, words = LAYOUTS[layout]
    whole = run(dist_run, 1, flags, tmp_path)
    cut = run(dist_run, ranks, f"{flags} {words}", tmp_path)
    for (loss, norm, losses), (expected, its_norm, its_losses) in zip(cut, whole, strict=True):
        assert loss == pytest.approx(expected, abs=1e-5)
        assert norm == pytest.approx(its_norm, rel=1e-4)
        assert losses.keys() == its_losses.keys()
        for kind, value in losses.items():
            np.testing.assert_allclose(value, its_losses[kind], rtol=1e-4, err_msg=kind)


KINDS = {
    "further": "--position-embedding-type rope --mtp-num-layers 2 --mtp-use-repeated-layer "
    "--mtp-detach-heads",
    "embedding": "--position-embedding-type alibi --embed-layernorm",
}


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("further", "tp2-sp"),
        ("embedding", "tp2-sp"),
        *(
            pytest.param(kind, layout, marks=pytest.mark.slow)
            for kind in KINDS
            for layout in ("tp2", "pp2", "cp2", "dp2-zero")
        ),
    ],
)
def test_layers_give_the_same_in_every_layout(dist_run, tmp_path, kind, layout):
    flags = f"{RECORDED['common']} --swiglu {KINDS[kind]}"
    ranks, words = LAYOUTS[layout]
    whole = run(dist_run, 1, flags, tmp_path)
    cut = run(dist_run, ranks, f"{flags} {words}", tmp_path)
    for (loss, norm, losses), (expected, its_norm, its_losses) in zip(cut, whole, strict=True):
        assert loss == pytest.approx(expected, abs=1e-5)
        assert norm == pytest.approx(its_norm, rel=1e-4)
        assert losses == pytest.approx(its_losses, abs=1e-4)


UPCYCLED = (
    "--position-embedding-type rope --swiglu --num-experts 4 --moe-router-topk 2 "
    "--moe-ffn-hidden-size 24 --moe-router-load-balancing-type none --moe-use-upcycling "
    "--moe-upcycling-granularity 2 --finetune"
)


def upcycling_worker(words, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron_runs, "load_megatron_parameters", lambda *_: None)
        return [step.losses["lm loss"] for step in replay(words, 2, cache)]


@pytest.mark.slow
@pytest.mark.parametrize("layout", EXPERTS)
def test_ranks_make_the_same_experts_from_a_dense_model(dist_run, tmp_path, layout):
    """Two steps: of weights whose gradients cancel, Adam's first steps follow the rounding."""
    dense = (
        f"{RECORDED['common']} --position-embedding-type rope --swiglu --ffn-hidden-size 48 "
        f"--save {tmp_path / 'dense'} --save-interval 1"
    )
    run(dist_run, 2, f"{dense} {TP}", tmp_path, 1)
    words = f"{RECORDED['common']} {UPCYCLED} --load {tmp_path / 'dense'}"
    ranks, flags = EXPERTS[layout]
    results = [
        dist_run(upcycling_worker, ranks=count, timeout=240.0, words=line, cache=str(tmp_path))[-1]
        for count, line in ((1, words), (ranks, f"{words} {flags}"))
    ]
    assert results[1] == pytest.approx(results[0], abs=1e-5)
