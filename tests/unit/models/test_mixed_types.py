# SPDX-License-Identifier: Apache-2.0
"""Weights of one type and computation in another: every kind of layer, with and without biases."""

import itertools

import numpy as np
import pytest

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import MoEConfig, TransformerConfig
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.core.tensor_parallel.random import seed_initialization
from mindspeed_ms.legacy.model import GPTModel

pytestmark = pytest.mark.usefixtures("single_rank")
SIZES = {"vocab_size": 32, "num_layers": 2, "num_attention_heads": 4, "hidden_size": 16}
NO_BIAS = {"qkv_has_bias": False, "out_proj_has_bias": False, "mlp_has_bias": False}
KINDS = {
    "gpt2": {},
    "gated": {
        "hidden_act": "swiglu",
        "ffn_hidden_size": 24,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
    },
    "no biases": {**NO_BIAS, "untie_embeddings_and_output_weights": True},
    "query norms": {"qk_layernorm": True, "use_sandwich_norm": True},
    "latent": {
        "multi_latent_attention": True,
        "position_embedding_type": "rope",
        "qk_layernorm": True,
        "mla_config": {"q_lora_rank": 6, "kv_lora_rank": 6, "rope_type": "rope"},
        "mtp_num_layers": 1,
    },
    "experts": {"moe_config": MoEConfig(num_experts=4)},
    "grouped experts": {
        **NO_BIAS,
        "moe_config": MoEConfig(
            num_experts=4,
            moe_grouped_gemm=True,
            moe_shared_expert_intermediate_size=8,
            moe_shared_expert_gate=True,
        ),
    },
}
TYPES = ("float32", "float16", "bfloat16")
MIXES = [
    (params, compute, residual)
    for params, compute in itertools.product(TYPES, TYPES)
    for residual in (False, True)
    if (params, compute) != ("float32", "float32") or not residual
]


def loss_and_gradients(changes, params, compute, residual):
    config = TransformerConfig(
        **SIZES,
        seq_length=8,
        init_method_std=0.1,
        params_dtype=params,
        compute_dtype=compute,
        residual_connection_dtype="float32" if residual else None,
        **changes,
    )
    seed_initialization(5)
    model = GPTModel(config).set_train(True)
    ids = np.random.default_rng(0).integers(0, 32, (2, 9)).astype(np.int32)
    tokens, labels = (memory.from_numpy(np.ascontiguousarray(ids[:, i : i + 8])) for i in (0, 1))
    mask = memory.from_numpy(np.ones((2, 8), np.float32))
    places = memory.from_numpy(np.tile(np.arange(8, dtype=np.int32), (2, 1)))
    loss = model(tokens, places, None, loss_mask=mask, labels=labels)
    handles, grads = [], {}
    for name, param in named_parameters(model):

        def keep(grad, name=name):
            grads[name] = grad.astype("float32").asnumpy()
            return grad

        handles.append(param.register_hook(keep))
    autograd.backward(loss)
    for handle in handles:
        handle.remove()
    return float(memory.as_numpy(loss)), grads, {name for name, _ in named_parameters(model)}


@pytest.mark.parametrize(("params", "compute", "residual"), MIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_types_go_together(kind, params, compute, residual):
    exact, wanted, _ = loss_and_gradients(KINDS[kind], "float32", "float32", False)
    loss, grads, names = loss_and_gradients(KINDS[kind], params, compute, residual)
    assert abs(loss - exact) < 0.05
    assert grads.keys() == wanted.keys() == names
    flat, expected = (
        np.concatenate([one[name].reshape(-1) for name in sorted(names)]) for one in (grads, wanted)
    )
    cosine = flat @ expected / np.linalg.norm(flat) / np.linalg.norm(expected)
    assert cosine > 0.98
