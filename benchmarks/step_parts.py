# SPDX-License-Identifier: Apache-2.0
"""Parts of a training step by the time they take, for ``train_step.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindspeed_ms.ops.cpu.timing import CallTimes

GROUPS = {
    "norms": "norm_forward norm_backward",
    "rotary": "rotary",
    "split qkv": "split_qkv join_qkv",
    "activation": "activation_forward activation_backward softmax_forward softmax_backward",
    "bias, dropout, residual": "dropout bias_grad add",
    "sums of experts' rows": "combine_rows_forward combine_rows_backward",
    "cross entropy": "ce_max ce_sum ce_sum_logits ce_backward",
    "embedding": "embedding_forward embedding_accumulate",
    "optimizer and gradient buffers": (
        "adamw axpy scale zero l2_norm_squared count_zeros copy_cast"
    ),
}
"""Entry points of the native library beside products."""

LINEAR = {
    "linear forward": ("linear_forward", "grouped_linear_forward"),
    "linear input gradient": ("linear_dgrad", "grouped_linear_dgrad"),
    "linear weight gradient": (
        "linear_wgrad",
        "linear_wgrad_accumulate",
        "grouped_linear_wgrad_accumulate",
    ),
}
ATTENTION = ("attention_forward", "attention_accumulate", "attention_backward")


def parts(times: CallTimes, seconds: float, steps: int, head_rows: int) -> dict[str, Any]:
    """Milliseconds per step of every part, and the shares.

    Args:
        times: calls of the measured steps.
        seconds: duration of these steps.
        steps: how many they were.
        head_rows: outputs of the head on this rank, by which its products are told from others.

    Returns:
        ``milliseconds`` by part, adding up to the step; ``gemm_share`` of the linear products and
        the head; ``product_share`` with the products of attention; ``rest_share`` = 1 -
        ``product_share``; ``gemm_gigaflops`` per second of the linear products.
    """
    named: dict[str, float] = dict.fromkeys((*LINEAR, "head (all three)"), 0.0)
    flops = 0.0
    for (name, sizes), spent in times.seconds.items():
        for part, names in LINEAR.items():
            if name in names:
                rows, width, out = sizes
                flops += 2.0 * rows * width * out * times.calls[name, sizes]
                named["head (all three)" if out == head_rows else part] += spent
    gemm = sum(named.values())
    attention = times.of(*ATTENTION)
    thread_seconds = times.attention_thread_seconds
    share = times.attention_product_seconds / thread_seconds if thread_seconds else 0.0
    named["attention products"] = attention * share
    products = sum(named.values())
    named["attention, the rest"] = attention * (1.0 - share)
    for part, entry_points in GROUPS.items():
        named[part] = times.of(*entry_points.split())
    named["Python, tape, data, communication"] = seconds - sum(named.values())
    return {
        "milliseconds": {part: round(spent / steps * 1e3, 2) for part, spent in named.items()},
        "gemm_share": round(gemm / seconds, 4),
        "product_share": round(products / seconds, 4),
        "rest_share": round(1.0 - products / seconds, 4),
        "gemm_gigaflops": round(flops / gemm * 1e-9, 1) if gemm else 0.0,
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """A bar per part; products in one colour, the rest in another."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = result["parts"]
    names, values = list(found["milliseconds"]), list(found["milliseconds"].values())
    products = {*LINEAR, "head (all three)", "attention products"}
    colours = ["tab:blue" if name in products else "tab:orange" for name in names]
    figure, axis = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    bars = axis.barh(names, values, color=colours)
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.margins(x=0.12)
    axis.invert_yaxis()
    axis.set_xlabel("milliseconds per step")
    axis.set_title(
        f"{sum(values):.0f} ms per step: linear products {found['gemm_share']:.0%}, with those of "
        f"attention {found['product_share']:.0%}, rest {found['rest_share']:.0%}"
    )
    figure.savefig(path, dpi=110)
