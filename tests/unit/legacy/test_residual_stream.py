# SPDX-License-Identifier: Apache-2.0
"""An fp32 residual stream under bf16 layers."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.core.tensor_parallel.random import seed_initialization
from mindspeed_ms.legacy.model import GPTModel

pytestmark = pytest.mark.usefixtures("single_rank")
SEQ, BATCH, VOCAB = 12, 2, 64
STYLES = {
    "llama": {
        "normalization": "RMSNorm",
        "hidden_act": "swiglu",
        "position_embedding_type": "rope",
    },
    "gpt2": {"add_bias_linear": True, "hidden_act": "gelu"},
}


def build(style, **changes):
    seed_initialization(3)
    return GPTModel(
        TransformerConfig(
            **{
                "vocab_size": VOCAB,
                "num_layers": 6,
                "num_attention_heads": 4,
                "hidden_size": 32,
                "seq_length": SEQ,
                "init_method_std": 0.2,
                **STYLES[style],
                **changes,
            }
        )
    )


def bf16(**changes):
    return {"compute_dtype": ms.bfloat16, "params_dtype": ms.bfloat16, **changes}


def train(model):
    """(loss, gradients by name) of one batch."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB, (BATCH, SEQ + 1)).astype(np.int32)
    loss = model(
        tokens=memory.from_numpy(np.ascontiguousarray(ids[:, :-1])),
        position_ids=memory.from_numpy(np.tile(np.arange(SEQ, dtype=np.int32), (BATCH, 1))),
        attention_mask=None,
        loss_mask=memory.from_numpy(np.ones((BATCH, SEQ), np.float32)),
        labels=memory.from_numpy(np.ascontiguousarray(ids[:, 1:])),
    )
    autograd.backward(loss)
    grads = {
        name: autograd.get_grad(parameter).astype(ms.float32).asnumpy()
        for name, parameter in named_parameters(model)
    }
    return float(loss.asnumpy()), grads


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("wide", [False, True])
def test_the_stream_between_layers_has_the_type_that_was_asked_for(style, wide):
    model = build(style, **bf16(fp32_residual_connection=wide))
    layer = next(iter(model.language_model.encoder.layers))
    seen = []
    layer.register_forward_hook(lambda _cell, given, result: seen.extend((given[0], result)))
    loss, _ = train(model)
    assert {tensor.dtype for tensor in seen} == {ms.float32 if wide else ms.bfloat16}
    assert np.isfinite(loss)


@pytest.mark.parametrize("style", STYLES)
def test_a_wide_stream_is_nearer_to_fp32(style):
    exact_loss, exact = train(build(style, compute_dtype=ms.float32))
    errors = []
    for wide in (False, True):
        loss, grads = train(build(style, **bf16(fp32_residual_connection=wide)))
        assert grads.keys() == exact.keys()
        scale = sum(np.square(grad).sum() for grad in exact.values())
        error = sum(np.square(grads[name] - exact[name]).sum() for name in exact)
        errors.append(error / scale)
        assert abs(loss - exact_loss) < 0.02
    assert errors[1] < 0.8 * errors[0], errors


def test_a_residual_type_wider_than_the_layers_is_the_same_wish():
    config = build("llama", **bf16(residual_connection_dtype=ms.float32)).config
    assert config.residual_dtype == "float32"
    config = build("llama", compute_dtype=ms.float32, residual_connection_dtype=ms.bfloat16).config
    assert config.residual_dtype == "float32"
