# SPDX-License-Identifier: Apache-2.0
"""Kernels of the native library (``csrc``), called on the tensors' own memory.

fp32, bf16 and fp16 storage, fp32 arithmetic, OpenMP threads. Sums are formed in pieces whose size
does not depend on the threads, so results repeat bit by bit, also with another thread count.

The library sees addresses. Three rules keep them valid, in every function here: a name holds each
tensor until the call returns (``x = x.contiguous()``: a copy would else be freed while its address
is used); a result is a new tensor, of which the kernel writes every element; and an input is never
written to, because the tape may hand one tensor to several readers.
"""

from __future__ import annotations

from mindspeed_ms.backend import device
from mindspeed_ms.ops.cpu import library
from mindspeed_ms.ops.cpu.activations import (
    gated,
    gelu,
    quick_gelu,
    scaled,
    silu,
    softcapped,
    squared_relu,
    swiglu,
)
from mindspeed_ms.ops.cpu.attention import (
    attention,
    attention_accumulate,
    attention_backward_accumulate,
    attention_sinks_grad,
    decode_attention,
    softmax,
)
from mindspeed_ms.ops.cpu.branch import branch
from mindspeed_ms.ops.cpu.cast import cast
from mindspeed_ms.ops.cpu.cross_entropy import ce_backward, ce_max, ce_sum, ce_sum_logits
from mindspeed_ms.ops.cpu.dropout import bias_dropout_add, dropout
from mindspeed_ms.ops.cpu.embedding import embedding, embedding_wgrad_accumulate
from mindspeed_ms.ops.cpu.experts import (
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
from mindspeed_ms.ops.cpu.flat import (
    adamw_,
    axpy_,
    copy_cast_,
    count_zeros,
    l2_norm_squared,
    scale_,
    zero_,
)
from mindspeed_ms.ops.cpu.linear import (
    bias_grad,
    linear_dgrad,
    linear_forward,
    linear_wgrad,
    linear_wgrad_accumulate,
)
from mindspeed_ms.ops.cpu.norms import layer_norm, rms_norm
from mindspeed_ms.ops.cpu.qkv import split_qkv
from mindspeed_ms.ops.cpu.rotary import rotary
from mindspeed_ms.ops.portable.activations import clipped, relu, sigmoid_gated
from mindspeed_ms.ops.portable.columns import join_columns, split_columns
from mindspeed_ms.ops.portable.cross_entropy import (
    ce_loss,
    kl_backward,
    kl_loss,
    kl_parts,
    masked_mean,
)
from mindspeed_ms.ops.portable.delta import causal_conv_silu, gated_delta_rule
from mindspeed_ms.ops.portable.flat import divide_by_root_, lion_
from mindspeed_ms.ops.portable.index import (
    attention_share,
    hidden_but_top,
    index_loss,
    index_scores,
)


def unavailable() -> str:
    """Why the set cannot run here, with the fix; empty when it can."""
    if device.is_ascend():
        return "tensors live on an Ascend NPU; use the kernel set ascend"
    return library.loading().reason


def describe() -> str:
    """What computes, for the start-up log."""
    loaded = library.library()
    wanted, cores = library.wanted_threads(), device.cores()
    surplus = f" (OMP_NUM_THREADS asks for {wanted})" if wanted > cores else ""
    return (
        f"native library for {loaded.level}, {loaded.get_threads()} thread(s) on {cores} "
        f"core(s){surplus}, GEMM: {loaded.products.describe()}"
    )
