# SPDX-License-Identifier: Apache-2.0
"""A stack of layers for new tokens of some sequences, in a native call; csrc/decode_layers.cpp."""

from __future__ import annotations

import ctypes

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms.ops.cpu.library import STORAGE, native

ACTIVATIONS = {
    "gelu": 0,
    "fast_gelu": 1,
    "swiglu": 2,
    "fused_swiglu": 2,
    "silu": 2,
    "quick_gelu": 3,
    "relu": 4,
    "squared_relu": 5,
}
SCORES = {"softmax": 0, "sigmoid": 1, "sqrtsoftplus": 2}
UNBOUNDED = 1 << 40


class Linear(ctypes.Structure):
    """Linear of csrc/few_rows.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class Norm(ctypes.Structure):
    """Norm of csrc/decode_layers.cpp."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("centred", ctypes.c_int32),
    )


class Latent(ctypes.Structure):
    """Latent of csrc/decode_layers.cpp."""

    _fields_ = (
        ("q_down", Linear),
        ("q_up", Linear),
        ("kv_down", Linear),
        ("kv_up", Linear),
        ("q_norm", Norm),
        ("kv_norm", Norm),
        ("rank", ctypes.c_int64),
        ("plain", ctypes.c_int64),
        ("value_dim", ctypes.c_int64),
    )


class Mixture(ctypes.Structure):
    """Mixture of csrc/decode_layers.cpp."""

    _fields_ = (
        ("router", Linear),
        ("bias", ctypes.c_void_p),
        ("has_a_say", ctypes.c_void_p),
        ("inward", ctypes.c_void_p),
        ("outward", ctypes.c_void_p),
        ("shared_in", Linear),
        ("shared_out", Linear),
        ("shared_gate", Linear),
        ("experts", ctypes.c_int64),
        ("choices", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("open_groups", ctypes.c_int64),
        ("group_scores", ctypes.c_int64),
        ("scores", ctypes.c_int32),
        ("scores_first", ctypes.c_int32),
        ("normalizes", ctypes.c_int32),
        ("rounds", ctypes.c_int32),
        ("factor", ctypes.c_float),
        ("unused", ctypes.c_int32),
    )


class Layer(ctypes.Structure):
    """Layer of csrc/decode_layers.cpp."""

    _fields_ = (
        ("input_norm", Norm),
        ("attention_post_norm", Norm),
        ("mlp_norm", Norm),
        ("mlp_post_norm", Norm),
        ("q_norm", Norm),
        ("k_norm", Norm),
        ("qkv", Linear),
        ("attention_out", Linear),
        ("mlp_in", Linear),
        ("mlp_out", Linear),
        ("latent", ctypes.c_void_p),
        ("mixture", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("slopes", ctypes.c_void_p),
        ("sinks", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("left", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


class Stack(ctypes.Structure):
    """Stack of csrc/decode_layers.cpp."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("rotated", ctypes.c_int64),
        ("room", ctypes.c_int64),
        ("storage", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("interleaved", ctypes.c_int32),
        ("adds_normed", ctypes.c_int32),
        ("side_by_side", ctypes.c_int32),
        ("normalizes_jointly", ctypes.c_int32),
        ("norms_of_heads", ctypes.c_int32),
        ("multiplier", ctypes.c_float),
        ("limit", ctypes.c_float),
        ("offset", ctypes.c_float),
        ("clip", ctypes.c_float),
        ("slots", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("stops", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("sequences", ctypes.c_int64),
        ("ranks", ctypes.c_void_p),
    )


def quantized_rows(weight: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix [n, m] as eight bits, and a factor for each row [n]: nearest to it as a product."""
    rows, width = weight.shape
    narrow, scales = np.empty((rows, width), np.int8), np.empty(rows, np.float32)
    native.quantize_rows(
        STORAGE[weight.dtype],
        weight.data_ptr(),
        rows,
        width,
        narrow.ctypes.data,
        scales.ctypes.data,
    )
    return narrow, scales


def decode_layers(x: NDArray[np.float32], layers: ctypes.Array[Layer], stack: Stack) -> None:
    """Take rows [rows, hidden] through all layers, in place; their tokens join the caches."""
    native.decode_layers(
        x.ctypes.data, ctypes.addressof(layers), len(layers), ctypes.addressof(stack)
    )


def decode_head(
    x: NDArray[np.float32], norm: Norm, head: Linear, storage: int
) -> NDArray[np.float32]:
    """Logits fp32 [rows, outputs] of rows [rows, hidden].

    Args:
        x: the rows.
        norm: applied first.
        head: the matrix.
        storage: code of its type.
    """
    logits = np.empty((len(x), head.outputs), np.float32)
    native.decode_head(
        storage,
        x.ctypes.data,
        len(x),
        ctypes.addressof(norm),
        ctypes.addressof(head),
        logits.ctypes.data,
    )
    return logits
