# SPDX-License-Identifier: Apache-2.0
"""Short runs that Megatron-core itself computed, each with other options, repeated here."""

import json

import numpy as np
import pytest
from megatron_runs import DATA, replay

RECORDED = json.loads((DATA / "megatron_core" / "runs.json").read_text(encoding="utf-8"))
CASES = RECORDED["cases"]

FEW = 3
"""Iterations of a case in the default suite, where later ones show nothing new."""
WHOLE = ("lr_", "wd_", "fp16_", "samples")
"""Beginnings of cases that are about what changes from one iteration to the next."""

SLOW = {
    *("gpt_untied", "gpt_rope", "llama_multi_head", "kv_channels", "norm_epsilon", "rotary_base"),
    *("moe_none", "moe_top3", "moe_seq_aux", "moe_capacity_pre_softmax", "moe_capacity_allgather"),
    *("moe_freq", "moe_shared", "moe_router_fp32", "moe_scaling", "moe_gelu", "moe_global_aux"),
    *("moe_per_token_loss", "mla_norms", "mla_q_lora_no_norms", "mla_yarn_40", "mla_yarn"),
    *("mla_rope_scaled", "mtp_gpt_rope", "mtp_moe", "lr_wsd_linear", "lr_wsd_cosine", "fp16_gpt"),
    *("fp16_static", "bf16_gpt", "bf16_gpt_residual_fp32", "bf16_mtp", "deepseek_v3", "adam"),
    *(
        "gpt_no_positions",
        "gpt_swiglu_bias",
        "rope_scaling",
        "moe_aux",
        "moe_sinkhorn",
        "moe_groups",
    ),
    *("moe_sigmoid", "moe_z_loss", "mla_rope", "mla_q_lora", "mtp", "lr_constant", "lr_linear"),
    *("wd_linear", "bf16_llama", "bf16_llama_softmax_fp32", "eod_mask", "fp16_dynamic"),
}
"""Cases whose options others show together with further ones."""

EXACT = (3e-6, 1e-5)
"""Largest difference of a loss, and relative one of a gradient norm, with fp32 throughout."""
ROUNDED = {"--bf16": (4e-3, 2e-2), "--fp16": (2e-4, 1e-3)}
"""The same where every product is rounded to 16 bits: the order of its sum then shows."""


def words_of(case):
    """Flags of a recorded case."""
    words = f"{RECORDED['common']} {case['flags']}"
    for left_out in case.get("left_out", ()):
        words = words.replace(f"{left_out} ", "", 1)
    return words


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("index")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES],
)
def test_a_run_of_megatron_core_repeats_itself(cache, name):
    case = CASES[name]
    recorded = len(case["learning_rate"])
    steps = replay(words_of(case), recorded if name.startswith(WHOLE) else FEW, cache)
    assert len(steps) in (FEW, recorded)
    loss_limit, norm_limit = next(
        (limits for flag, limits in ROUNDED.items() if flag in case["flags"]), EXACT
    )
    for number, step in enumerate(steps):
        assert abs(step.losses["lm loss"] - case["loss"][number]) <= loss_limit, number
        assert step.learning_rate == pytest.approx(case["learning_rate"][number], rel=1e-12)
        norm = case["grad_norm"][number]
        if norm is not None:  # no overflow
            assert step.grad_norm == pytest.approx(norm, rel=norm_limit), number
        if "skipped" in case:
            assert step.skipped == bool(case["skipped"][number])
            if number:
                assert steps[number - 1].loss_scale == case["loss_scale"][number]
        for index, expected in enumerate(case["mtp"][number] if "mtp" in case else ()):
            assert step.losses[f"mtp_{index + 1} loss"] == pytest.approx(expected, abs=loss_limit)
        # Megatron adds what the layers for further tokens lose to the first layers' losses.
        of_layers = {} if "mtp" in case else case.get("layer_losses", {})
        for kind, layers in of_layers.items():
            np.testing.assert_allclose(
                step.layer_losses[kind],
                layers[number][: len(step.layer_losses[kind])],
                rtol=10 * norm_limit,
                err_msg=kind,
            )
