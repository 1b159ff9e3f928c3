# SPDX-License-Identifier: Apache-2.0
"""Training with shared sequences: losses and gradients are those of whole sequences.

The runs start from the weights and data of Megatron-LM's recorded runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pipeline_runs
import pytest

from mindspeed_ms.backend import memory
from mindspeed_ms.command import compare_layouts as tool
from mindspeed_ms.command import parity
from mindspeed_ms.engine.datasets import get_batch_on_this_cp_rank
from mindspeed_ms.legacy.model import GPTModel

pytestmark = pytest.mark.ranks
GOLDEN = Path(__file__).parents[1] / "data" / "golden"

LOSS, GRADIENT = 1e-5, 1e-4
"""Absolute on losses; on gradients relative to the largest of the tensor."""

PACKED = ("--reset-attention-mask", "--reset-position-ids", "--eod-mask-loss")
"""Documents that share a row do not see each other; not every token counts."""

_WHOLE: dict[tuple, dict] = {}
"""Runs on whole sequences, by their arguments."""


def training_worker(case, layout, flags, steps, output):
    """Losses, gradient norms and first gradients; rank 0 has the gradients."""
    recorded = parity.recorded_flags(parity.load_run(GOLDEN, case), GOLDEN, output)
    # With Megatron's flag the weights of pipeline stages would come from streams of their own.
    recorded = [flag for flag in recorded if flag != "--use-cpu-initialization"]
    if "--multi-latent-attention" in flags:
        at = recorded.index("--group-query-attention")
        del recorded[at : at + 3]  # with --num-query-groups and its value
    run = tool.train(layout, [*recorded, *flags], steps)
    assert not run.refusal
    return {"losses": run.losses, "norms": run.grad_norms, "gradients": run.gradients}


def whole(dist_run, case, flags, steps, output):
    key = (case, tuple(flags), steps)
    if key not in _WHOLE:
        arguments = {"case": case, "flags": flags, "steps": steps, "output": output}
        _WHOLE[key] = dist_run(training_worker, ranks=1, timeout=300.0, layout="", **arguments)[0]
    return _WHOLE[key]


def check(results, reference, steps):
    for result in results:
        assert len(result["losses"]) == steps
        np.testing.assert_allclose(result["losses"], reference["losses"], rtol=0, atol=LOSS)
        np.testing.assert_allclose(result["norms"], reference["norms"], rtol=GRADIENT)
    for name, grad in results[0]["gradients"].items():
        want = reference["gradients"][name]
        error = np.abs(grad - want).max() / np.abs(want).max()
        assert error <= GRADIENT, (name, error)


QUICK = {
    "ring": "cp=2,ring",
    "ulysses": "cp=2",
}


@pytest.mark.parametrize("layout", list(QUICK.values()), ids=list(QUICK))
def test_packed_documents_train_the_same_on_shared_sequences(dist_run, tmp_path, layout):
    arguments = ("b_llama_hot", PACKED, 3)
    reference = whole(dist_run, *arguments, str(tmp_path))
    results = dist_run(
        training_worker,
        ranks=2,
        timeout=120.0,
        layout=layout,
        **dict(zip(("case", "flags", "steps"), arguments, strict=True)),
        output=str(tmp_path),
    )
    check(results, reference, 3)
    assert set(results[0]["gradients"]) == set(reference["gradients"])


def test_documents_change_the_loss(dist_run, tmp_path):
    """The comparison above would not notice documents that nobody keeps apart."""
    packed = whole(dist_run, "b_llama_hot", PACKED, 3, str(tmp_path))
    mixed = whole(dist_run, "b_llama_hot", PACKED[1:], 3, str(tmp_path))
    assert abs(packed["losses"][0] - mixed["losses"][0]) > 10 * LOSS


def eod_worker(style, flags):
    """Loss of a model that finds the documents in its tokens itself."""
    config = pipeline_runs.start(style, ["--global-batch-size", "1", *flags])
    model = GPTModel(config.model_config, eod=3, reset_position_ids=True)
    sample = pipeline_runs.sample(2)
    sample["tokens"][[4, 9]] = 3
    whole = {name: value[None] for name, value in sample.items()}
    batch = {
        name: memory.from_numpy(np.ascontiguousarray(value))
        for name, value in get_batch_on_this_cp_rank(whole).items()
    }
    return float(model(attention_mask=None, **batch).asnumpy())


@pytest.mark.parametrize("style", ["llama", "gpt2"])
@pytest.mark.parametrize("algo", ["megatron_cp_algo", "ulysses_cp_algo"])
def test_a_model_with_eod_finds_documents_of_shared_sequences(dist_run, style, algo):
    (expected,) = dist_run(eod_worker, ranks=1, style=style, flags=[])
    flags = ["--context-parallel-size", "2", "--context-parallel-algo", algo]
    for loss in dist_run(eod_worker, ranks=2, style=style, flags=flags):
        assert abs(loss - expected) < LOSS


STEPS = 40
LAYOUTS = {
    "cp2-ring": (2, "cp=2,ring"),
    "cp2-ulysses": (2, "cp=2"),
    "cp2-gather": (2, "cp=2,gather"),
    "cp4-ring": (4, "cp=4,ring"),
    "cp4-ulysses": (4, "cp=4"),
    "cp4-gather": (4, "cp=4,gather"),
    "cp4-hybrid": (4, "cp=4,hybrid,ulysses=2"),
    "tp2-cp2-ring": (4, "tp=2,cp=2,ring"),
    "tp2-sp-cp2-ring": (4, "tp=2,sp,cp=2,ring"),
    "tp2-sp-cp2-ulysses": (4, "tp=2,sp,cp=2"),
    "pp2-cp2-ring": (4, "pp=2,cp=2,ring"),
    "pp2-vpp2-cp2-ulysses": (4, "pp=2,vpp=2,cp=2"),
    "cp2-dp2-distopt-ring": (4, "cp=2,zero1,ring"),
    "cp2-dp2-distopt-ulysses": (4, "cp=2,zero1"),
    "cp2-ep2-ring": (2, "cp=2,ep=2,ring"),
    "cp2-ep2-tp2-ulysses": (4, "tp=2,sp,cp=2,ep=2"),
}
FLAGS = {
    "plain": (),
    "packed": PACKED,
    "recompute": ("--recompute-granularity", "full", "--recompute-method", "uniform")
    + ("--recompute-num-layers", "1"),
    "core-attention": ("--recompute-granularity", "selective"),
    "dropout": ("--attention-dropout", "0.2"),
    "all-dropout": ("--attention-dropout", "0.2", "--hidden-dropout", "0.1"),
    "latent": (
        *("--multi-latent-attention", "--q-lora-rank", "24", "--kv-lora-rank", "16"),
        *("--qk-head-dim", "16", "--qk-pos-emb-head-dim", "8", "--v-head-dim", "12"),
        *("--mtp-num-layers", "1", "--reset-attention-mask"),
    ),
    "general": (*PACKED, "--attention-mask-type", "general"),
}
RUNS = [
    *(("b_llama_hot", name, "packed") for name in LAYOUTS if "ep2" not in name),  # it is dense
    *(("b_llama_hot", name, "plain") for name in ("cp4-ring", "cp4-hybrid", "tp2-cp2-ring")),
    *(("a_gpt2_hot", name, "packed") for name in ("cp2-ring", "cp4-hybrid", "pp2-cp2-ring")),
    ("b_llama_hot", "cp2-ring", "recompute"),
    ("b_llama_hot", "cp2-ulysses", "core-attention"),
    ("b_llama_hot", "cp4-ring", "dropout"),
    ("b_llama_hot", "cp4-hybrid", "dropout"),
    ("b_llama_hot", "cp2-ulysses", "all-dropout"),  # consecutive tokens: the very same draws
    ("b_llama_hot", "cp2-ring", "latent"),  # and further tokens, whose labels cross the shares
    ("b_llama_hot", "cp4-hybrid", "latent"),
    ("g_moe", "cp2-ep2-ring", "packed"),
    ("g_moe", "cp2-ep2-tp2-ulysses", "packed"),
    ("b_llama_hot", "cp4-gather", "general"),
    ("b_llama_hot", "cp4-hybrid", "general"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "layout", "flags"), RUNS, ids=lambda value: value)
def test_forty_iterations_follow_whole_sequences(dist_run, tmp_path, case, layout, flags):
    ranks, words = LAYOUTS[layout]
    more = FLAGS[flags]
    steps = STEPS if case != "g_moe" else len(parity.load_run(GOLDEN, case)["lm_loss"])
    arguments = {"case": case, "flags": more, "steps": steps, "output": str(tmp_path)}
    # Recomputation and dense masks must not change anything, so whole runs do without.
    plain = {"recompute": (), "core-attention": (), "general": PACKED}.get(flags, more)
    reference = whole(dist_run, case, plain, steps, str(tmp_path))
    results = dist_run(training_worker, ranks=ranks, timeout=300.0, layout=words, **arguments)
    check(results, reference, steps)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["a_gpt2_hot", "b_llama_hot"])
@pytest.mark.parametrize("layout", ["cp2-ring", "cp4-hybrid"])
def test_forty_iterations_follow_megatron(dist_run, tmp_path, case, layout):
    ranks, words = LAYOUTS[layout]
    recorded = parity.load_run(GOLDEN, case)
    reference = {"losses": recorded["lm_loss"], "norms": recorded["grad_norm"]}
    results = dist_run(
        training_worker,
        ranks=ranks,
        timeout=300.0,
        case=case,
        layout=words,
        flags=(),
        steps=STEPS,
        output=str(tmp_path),
    )
    for result in results:
        result["gradients"] = {}
    check(results, reference, STEPS)
