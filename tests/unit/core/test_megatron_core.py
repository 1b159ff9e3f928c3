# SPDX-License-Identifier: Apache-2.0
"""Short runs that Megatron-core itself computed, each with other options, repeated here."""

import contextlib
import io
import json
import logging
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import named_buffers, named_parameters, shard_of
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.legacy.model.megatron_names import load_megatron_parameters, megatron_names
from mindspeed_ms.training import initialize_megatron, pretrain

DATA = Path(__file__).parents[2] / "data"
GOLDEN = DATA / "golden"
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


def drawn(name, shape, *, is_zero_centered):
    """A parameter as a function of its name; norms and biases are not what training begins with."""
    values = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    if name.endswith("expert_bias"):
        return np.zeros(shape, np.float32)
    usual = 1.0 if name.endswith("norm.weight") and not is_zero_centered else 0.0
    return (usual + 0.1 * values).astype(np.float32)


def provider(pre_process, post_process, is_zero_centered):
    model = GPTModel(
        get_all_config().model_config, pre_process=pre_process, post_process=post_process
    )
    arrays, names = {}, megatron_names(model)
    for own, param in [*named_parameters(model), *named_buffers(model)]:
        name = names[own]
        shape = shard_of(param).full_shape(param.shape)
        arrays[name] = drawn(name, shape, is_zero_centered=is_zero_centered)
    load_megatron_parameters(model, arrays)
    return model


def replay(case, iterations, cache):
    """Steps of a recorded case, from its weights and on its data."""
    words = f"{RECORDED['common']} {case['flags']}"
    for left_out in case.get("left_out", ()):
        words = words.replace(f"{left_out} ", "", 1)
    data = (
        f"--data-path {GOLDEN}/corpus_text_document --tokenizer-type SentencePieceTokenizer "
        f"--tokenizer-model {GOLDEN}/tok.model --split 100,0,0 --data-cache-path {cache} "
        f"--num-workers 0 --eval-iters 0 --log-interval 1000 --exit-interval {iterations}"
    )
    comm.init_process_group()
    parallel_state.destroy_model_parallel()
    steps = []
    with contextlib.redirect_stdout(io.StringIO()):
        initialize_megatron(argv=f"{words} {data}".split())
        logging.getLogger("mindspeed_ms").setLevel(logging.WARNING)
        is_zero_centered = "--apply-layernorm-1p" in words
        pretrain(
            None,
            partial(provider, is_zero_centered=is_zero_centered),
            all_config=get_all_config(),
            on_step=steps.append,
        )
    parallel_state.destroy_model_parallel()
    return steps


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
    steps = replay(case, recorded if name.startswith(WHOLE) else FEW, cache)
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
