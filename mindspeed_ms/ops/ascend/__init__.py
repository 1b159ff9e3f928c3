# SPDX-License-Identifier: Apache-2.0
"""Kernels of the Ascend NPU: MindSpore's fused calls, and stock operators around them.

Every call but the grouped product of experts runs forward and backward in
``tests/unit/ops/test_ascend_on_cpu.py``, through MindSpore's dispatch and gradients, on kernels
that keep the documented rules; ``docs/ascend.md`` says what that proves. Not verified on hardware:
speed, and how the NPU's own kernels round.
"""

from __future__ import annotations

from mindspeed_ms.backend import device
from mindspeed_ms.ops.ascend.attention import (
    attention,
    attention_accumulate,
    attention_backward_accumulate,
    attention_sinks_grad,
    decode_attention,
    softmax,
)
from mindspeed_ms.ops.ascend.columns import join_columns, split_columns
from mindspeed_ms.ops.ascend.dropout import bias_dropout_add, dropout
from mindspeed_ms.ops.ascend.experts import (
    combine_rows,
    grouped_linear_dgrad,
    grouped_linear_forward,
    grouped_linear_wgrad_accumulate,
    largest_columns,
    normalized_rows,
    product_fp64,
    random_normal,
    random_uniform,
    router_scores,
    squared_logsumexp,
    take_columns,
    weighted_total,
)
from mindspeed_ms.ops.ascend.flat import (
    adamw_,
    axpy_,
    copy_cast_,
    count_zeros,
    divide_by_root_,
    l2_norm_squared,
    lion_,
    scale_,
    zero_,
)
from mindspeed_ms.ops.ascend.linear import (
    bias_grad,
    embedding,
    embedding_wgrad_accumulate,
    linear_dgrad,
    linear_forward,
    linear_wgrad,
    linear_wgrad_accumulate,
)
from mindspeed_ms.ops.ascend.loss import (
    ce_backward,
    ce_loss,
    ce_max,
    ce_sum,
    ce_sum_logits,
    kl_backward,
    kl_loss,
    kl_parts,
    masked_mean,
)
from mindspeed_ms.ops.ascend.pointwise import (
    branch,
    cast,
    clipped,
    gated,
    gelu,
    layer_norm,
    quick_gelu,
    relu,
    rms_norm,
    rotary,
    scaled,
    sigmoid_gated,
    silu,
    softcapped,
    split_qkv,
    squared_relu,
    swiglu,
)
from mindspeed_ms.ops.portable.delta import causal_conv_silu, gated_delta_rule
from mindspeed_ms.ops.portable.index import (
    attention_share,
    hidden_but_top,
    index_loss,
    index_scores,
)


def unavailable() -> str:
    """Why the set cannot run here; empty on an NPU."""
    if device.is_ascend():
        return ""
    return (
        f"no Ascend NPU in this process (device is {device.platform()}); run on a host with CANN, "
        "or select auto"
    )


def describe() -> str:
    """What computes, for the start-up log."""
    return "fused CANN kernels through MindSpore"
