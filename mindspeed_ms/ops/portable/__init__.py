# SPDX-License-Identifier: Apache-2.0
"""Definition and oracle of every operation: readable, with explicit gradients, in NumPy.

Why NumPy and not MindSpore's own CPU operators: measured against float64, those have a tanh that is
wrong by 1e-4, an exp by 5e-6 and a softmax by 8e-6 relative, sums that add one element after the
other, and in-place operators that do nothing. NumPy is within a few units in the last place, so
this set is fit to judge the others and to train with where no compiler was at hand. On an NPU it
computes on the host: slow, and right, which is what an oracle is for.
"""

from __future__ import annotations

from mindspeed_ms.ops.portable.activations import (
    clipped,
    gated,
    gelu,
    quick_gelu,
    relu,
    scaled,
    sigmoid_gated,
    silu,
    softcapped,
    squared_relu,
    swiglu,
)
from mindspeed_ms.ops.portable.attention import (
    attention,
    attention_accumulate,
    attention_backward_accumulate,
    attention_sinks_grad,
    decode_attention,
    softmax,
)
from mindspeed_ms.ops.portable.branch import branch
from mindspeed_ms.ops.portable.cast import cast
from mindspeed_ms.ops.portable.columns import join_columns, split_columns
from mindspeed_ms.ops.portable.cross_entropy import (
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
from mindspeed_ms.ops.portable.delta import causal_conv_silu, gated_delta_rule
from mindspeed_ms.ops.portable.dropout import bias_dropout_add, dropout
from mindspeed_ms.ops.portable.embedding import embedding, embedding_wgrad_accumulate
from mindspeed_ms.ops.portable.experts import (
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
from mindspeed_ms.ops.portable.flat import (
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
from mindspeed_ms.ops.portable.index import (
    attention_share,
    hidden_but_top,
    index_loss,
    index_scores,
)
from mindspeed_ms.ops.portable.linear import (
    bias_grad,
    linear_dgrad,
    linear_forward,
    linear_wgrad,
    linear_wgrad_accumulate,
)
from mindspeed_ms.ops.portable.norms import layer_norm, rms_norm
from mindspeed_ms.ops.portable.qkv import split_qkv
from mindspeed_ms.ops.portable.rotary import rotary


def unavailable() -> str:
    """Why the set cannot run here: never, so an empty string."""
    return ""


def describe() -> str:
    """What computes, for the start-up log."""
    return "NumPy arrays, matrix products by NumPy's BLAS"
