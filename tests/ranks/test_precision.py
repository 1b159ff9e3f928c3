# SPDX-License-Identifier: Apache-2.0
"""16-bit training, loss scales, overflow and gradients that are not numbers."""

import logging
import os
import signal

import numpy as np
import pytest
import tiny_training as tiny
from dist import RankFailure

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.distributed import (
    finalize_model_grads,
    first_bad_gradient,
    first_bad_mean,
    first_bad_weight,
)
from mindspeed_ms.core.optimizer import ConstantGradScaler, DynamicGradScaler
from mindspeed_ms.core.optimizer.grad_scaler import ScalePolicy
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.engine.first_bad_number import explain

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
TIMEOUT = 120.0
FP32_GRADS = {"grad_reduce_in_fp32": True}


def precision_worker(dtype, ddp, scale=None, tensor=1, **model):
    tiny.start(tensor)
    scaler = None if scale is None else ConstantGradScaler(scale)
    wrapped, rule = tiny.build(ddp, None, tensor, dtype=dtype, scaler=scaler, **model)
    report = tiny.train(wrapped, rule, steps=4, lr=0.01)
    report["weights"] = tiny.weights(wrapped)
    report["masters"] = {part.name: str(part.main_param.dtype) for part in rule.state_parts()}
    return report


@pytest.fixture(scope="module")
def fp32_losses():
    return {}


@pytest.mark.parametrize(
    "ddp",
    [
        FP32_GRADS,
        {},
        {**FP32_GRADS, "use_distributed_optimizer": True, "overlap_grad_reduce": True},
        {**FP32_GRADS, "zero_level": "z2"},
        {"zero_level": "z3"},
    ],
    ids=["fp32 grads", "16-bit grads", "distributed", "z2", "z3, 16-bit grads"],
)
@pytest.mark.parametrize(("dtype", "scale"), [("bfloat16", None), ("float16", 1024.0)])
def test_16_bit_training_follows_fp32(dist_run, fp32_losses, dtype, scale, ddp):
    if not fp32_losses:
        results = dist_run(
            precision_worker, ranks=2, timeout=TIMEOUT, dtype="float32", ddp=FP32_GRADS
        )
        fp32_losses["loss"] = np.mean([result["loss"] for result in results], axis=0)
    results = dist_run(
        precision_worker, ranks=2, timeout=TIMEOUT, dtype=dtype, ddp=ddp, scale=scale
    )
    # Losses near 4 with weights of 8 (bfloat16) or 11 (float16) significant bits.
    tolerance = 2e-2 if dtype == "bfloat16" else 4e-3
    np.testing.assert_allclose(
        np.mean([result["loss"] for result in results], axis=0), fp32_losses["loss"], atol=tolerance
    )
    assert set(results[0]["masters"].values()) == {"Float32"}
    for name, value in results[0]["weights"].items():
        np.testing.assert_array_equal(value, results[1]["weights"][name], err_msg=name)


def test_both_ways_to_accumulate_agree(dist_run):
    runs = [
        dist_run(
            precision_worker,
            ranks=2,
            timeout=TIMEOUT,
            dtype="bfloat16",
            ddp=FP32_GRADS,
            fused=fused,
        )
        for fused in (True, False)
    ]
    # Without fusion each micro-batch's weight gradient is rounded to bfloat16 first.
    np.testing.assert_allclose(runs[0][0]["loss"], runs[1][0]["loss"], atol=5e-3)


def _snapshot(rule):
    tensors = {}
    for index, part in enumerate(rule.state_parts()):
        tensors[index, "main"] = memory.as_numpy(part.main_param).copy()
        for name, tensor in part.state.items():
            tensors[index, name] = memory.as_numpy(tensor).copy()
    return tensors


def overflow_worker(ddp, bad_rank):
    """Two good steps, one that overflows on one rank, one good step."""
    tiny.start()
    scaler = DynamicGradScaler(ScalePolicy(initial_scale=256.0, hysteresis=1, growth_interval=2))
    wrapped, rule = tiny.build(ddp, None, dtype="float16", scaler=scaler)
    messages = []

    class Collector(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    handler = Collector()
    logging.getLogger("mindspeed_ms.core.optimizer.optimizer").addHandler(handler)
    report = {"scales": [], "success": [], "norms": []}
    for step in range(4):
        if step == 2:
            before, weights = _snapshot(rule), tiny.weights(wrapped)
        wrapped.zero_grad_buffer()
        is_bad = step == 2 and comm.get_rank() == bad_rank
        poison = np.inf if is_bad else None
        tiny.forward_backward(wrapped, step, 4, rule.loss_scale, poison=poison)
        finalize_model_grads([wrapped])
        rule.set_schedule(0.01, 0.1, None)
        result = rule.step()
        report["success"].append(result.success)
        report["norms"].append(result.grad_norm)
        report["scales"].append(rule.loss_scale)
        if step == 2:
            after, kept = _snapshot(rule), tiny.weights(wrapped)
            report["state kept"] = all(np.array_equal(before[key], after[key]) for key in before)
            report["weights kept"] = all(np.array_equal(weights[n], kept[n]) for n in weights)
    report["steps"] = rule.num_steps
    report["finite"] = all(np.isfinite(value).all() for value in tiny.weights(wrapped).values())
    report["messages"] = messages
    logging.getLogger("mindspeed_ms.core.optimizer.optimizer").removeHandler(handler)
    return report


@pytest.mark.parametrize("ddp", [{}, {"use_distributed_optimizer": True}, {"zero_level": "z2"}])
@pytest.mark.parametrize("bad_rank", [0, 1])
def test_an_overflow_on_one_rank_skips_the_step_everywhere(dist_run, ddp, bad_rank):
    results = dist_run(overflow_worker, ranks=2, timeout=TIMEOUT, ddp=ddp, bad_rank=bad_rank)
    for result in results:
        assert result["success"] == [True, True, False, True]
        assert result["scales"] == [256.0, 512.0, 256.0, 256.0]
        assert result["state kept"] and result["weights kept"] and result["finite"]
        assert result["norms"][2] is None and result["norms"][3] > 0
        assert result["steps"] == 3
    text = " ".join(message for result in results for message in result["messages"])
    assert "gradient overflow with loss scale 512, first in" in text


def nan_worker(ddp, bad_rank):
    """A gradient that is not a number on one rank; what every rank finds of its own."""
    tiny.start()
    wrapped, _ = tiny.build({**ddp, "check_for_nan_in_grad": True})
    wrapped.zero_grad_buffer()
    poison = np.nan if comm.get_rank() == bad_rank else None
    tiny.forward_backward(wrapped, 0, 8, poison=poison)
    finalize_model_grads([wrapped])
    return first_bad_gradient([wrapped]), first_bad_mean([wrapped]), explain([wrapped])


@pytest.mark.parametrize("ddp", [{}, {"use_distributed_optimizer": True}, {"zero_level": "z3"}])
@pytest.mark.parametrize("bad_rank", [0, 3])
def test_a_nan_is_named_with_the_rank_that_made_it(dist_run, ddp, bad_rank):
    results = dist_run(nan_worker, ranks=4, timeout=TIMEOUT, ddp=ddp, bad_rank=bad_rank)
    own, means, texts = zip(*results, strict=True)
    assert [name is not None for name in own] == [rank == bad_rank for rank in range(4)]
    assert any(means) and len(set(texts)) == 1
    assert texts[0] == f"first in rank {bad_rank}: gradient of {own[bad_rank]}"


def good_worker():
    tiny.start()
    wrapped, _ = tiny.build({"check_for_nan_in_grad": True})
    wrapped.zero_grad_buffer()
    tiny.forward_backward(wrapped, 0, 4)
    finalize_model_grads([wrapped])
    return first_bad_gradient([wrapped]) or first_bad_mean([wrapped]) or first_bad_weight([wrapped])


def test_good_numbers_are_not_named(dist_run):
    assert dist_run(good_worker, ranks=2, timeout=TIMEOUT) == [None, None]


def killed_worker():
    """One rank dies after its peers have started to reduce."""
    tiny.start()
    wrapped, _ = tiny.build({"overlap_grad_reduce": True, "bucket_size": 300})
    for step in range(2):
        wrapped.zero_grad_buffer()
        tiny.forward_backward(wrapped, step, 4)
        if step == 1 and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        finalize_model_grads([wrapped])
    parallel_state.destroy_model_parallel()
    return [name for name, _ in named_parameters(wrapped.module)]


def test_a_rank_killed_in_a_reduction_ends_the_job(dist_run):
    with pytest.raises(RankFailure, match="rank 1 failed"):
        dist_run(killed_worker, ranks=2, timeout=60.0)
