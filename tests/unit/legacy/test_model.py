# SPDX-License-Identifier: Apache-2.0
"""GPT models of all styles in one process: names, shapes, defaults, refusals."""

import enum

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from tiny_models import model_config

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import DatasetConfig
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.legacy.model import (
    AttnMaskType,
    AttnType,
    GPTModel,
    LayerType,
    ParallelAttention,
    ParallelLMLogits,
    ParallelMLP,
    ParallelTransformerLayer,
    RotaryEmbedding,
    get_language_model,
    get_norm,
)
from mindspeed_ms.legacy.model.enums import as_mask_type
from mindspeed_ms.legacy.model.loss import LossWithMask
from mindspeed_ms.legacy.model.megatron_names import load_megatron_parameters, megatron_names
from mindspeed_ms.training.loss_func import LossWithMask as PublicLossWithMask

pytestmark = pytest.mark.usefixtures("single_rank")
BATCH, SEQ, VOCAB = 2, 12, 32

GPT2 = {"position_embedding_type": "absolute", "hidden_act": "gelu", "add_bias_linear": True}
LLAMA = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "hidden_act": "swiglu",
    "qkv_has_bias": False,
    "out_proj_has_bias": False,
    "mlp_has_bias": False,
    "group_query_attention": True,
    "num_query_groups": 2,
    "untie_embeddings_and_output_weights": True,
}
SANDWICH = {
    **LLAMA,
    "use_sandwich_norm": True,
    "attn_post_norm_scale": 0.0447,
    "ffn_post_norm_scale": 0.0825,
}


def _config(**style):
    data = DatasetConfig(batch_size=BATCH)
    return model_config({"vocab_size": VOCAB, "seq_length": SEQ, "dataset_config": data}, **style)


def _batch(seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, (BATCH, SEQ + 1)).astype(np.int32)
    return {
        "tokens": memory.from_numpy(np.ascontiguousarray(ids[:, :-1])),
        "labels": memory.from_numpy(np.ascontiguousarray(ids[:, 1:])),
        "position_ids": memory.from_numpy(np.tile(np.arange(SEQ, dtype=np.int32), (BATCH, 1))),
        "loss_mask": memory.from_numpy(np.ones((BATCH, SEQ), np.float32)),
    }


def _loss(model, attention_mask=None, **changes):
    batch = {**_batch(), **changes}
    return model(attention_mask=attention_mask, **batch)


@pytest.mark.parametrize("style", [GPT2, LLAMA, SANDWICH], ids=["gpt2", "llama", "38b"])
def test_every_parameter_gets_a_gradient_that_lowers_the_loss(style):
    model = GPTModel(_config(**style))
    loss = _loss(model)
    assert loss.shape == () and loss.dtype == ms.float32
    autograd.backward(loss)
    for name, param in named_parameters(model):
        grad = autograd.get_grad(param)
        assert grad is not None, name
        values = memory.as_numpy(memory.contiguous(grad))
        assert np.isfinite(values).all() and np.abs(values).max() > 0, name
        memory.as_numpy(param)[...] -= np.float32(0.05) * values
    assert float(_loss(model)) < float(loss)


def test_parameter_names_are_the_checkpoint_contract():
    names = [name for name, _ in named_parameters(GPTModel(_config(**SANDWICH)))]
    layer = "language_model.encoder.layers.1."
    assert [name.removeprefix(layer) for name in names if name.startswith(layer)] == [
        "input_norm.weight",
        "attention.out_proj.weight",
        "attention.qkv_proj.weight",
        "post_attention_norm.weight",
        "mlp.mapping.weight",
        "mlp.projection.weight",
        "attn_post_norm.weight",
        "ffn_post_norm.weight",
    ]
    assert "language_model.embedding.word_embeddings.weight" in names
    assert "language_model.encoder.final_norm.weight" in names
    assert "language_model.output_layer.weight" in names
    names = [name for name, _ in named_parameters(GPTModel(_config(**GPT2)))]
    assert "language_model.encoder.layers.0.input_norm.gamma" in names
    assert "language_model.encoder.layers.0.attention.qkv_proj.bias" in names
    assert "language_model.embedding.position_embeddings.weight" in names
    assert not any("output_layer" in name for name in names)


def test_post_norm_weights_start_at_their_scale():
    params = dict(named_parameters(GPTModel(_config(**SANDWICH))))
    layer = "language_model.encoder.layers.0."
    assert params[layer + "attn_post_norm.weight"].asnumpy() == pytest.approx(0.0447)
    assert params[layer + "ffn_post_norm.weight"].asnumpy() == pytest.approx(0.0825)


def test_absolute_positions_are_learned_and_used():
    model = GPTModel(_config(**GPT2))
    shifted = memory.from_numpy(np.tile(np.arange(SEQ, dtype=np.int32)[::-1].copy(), (BATCH, 1)))
    assert float(_loss(model)) != float(_loss(model, position_ids=shifted))
    table = model.language_model.embedding.position_embeddings.weight
    assert table.dtype == ms.float32 and table.shape == (SEQ, 16)


@pytest.mark.parametrize("style", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_an_explicit_causal_mask_gives_the_causal_loss(style):
    model = GPTModel(_config(**style))
    mask = np.triu(np.ones((SEQ, SEQ), bool), 1)
    for shape in ((1, 1, SEQ, SEQ), (BATCH, SEQ, SEQ)):
        tensor = memory.from_numpy(np.ascontiguousarray(np.broadcast_to(mask, shape)))
        assert float(_loss(model, tensor)) == pytest.approx(float(_loss(model)), rel=1e-6)


@pytest.mark.parametrize("eod", [0, 5])
def test_documents_of_a_packed_row_do_not_see_each_other(eod):
    model = GPTModel(_config(**LLAMA), eod=eod)
    tokens = np.full((BATCH, SEQ), 7, np.int32)
    tokens[:, 5] = eod
    other = tokens.copy()
    other[:, :5] = 9
    logits = [model(memory.from_numpy(ids), None, None).asnumpy() for ids in (tokens, other)]
    assert logits[0].shape == (BATCH, SEQ, VOCAB)
    # Rotary positions are those of the row, so the second document is bitwise independent.
    np.testing.assert_array_equal(logits[0][:, 6:], logits[1][:, 6:])
    assert np.abs(logits[0][:, :5] - logits[1][:, :5]).max() > 0


def test_the_loss_leaves_out_masked_tokens():
    class PerToken(nn.Cell):
        def construct(self, logits, label):
            return logits

    losses = np.random.default_rng(1).random((3, 4)).astype(np.float32)
    mask = (np.random.default_rng(2).random((3, 4)) < 0.5).astype(np.float32)
    loss = LossWithMask(PerToken())
    mean = loss(memory.from_numpy(losses), None, memory.from_numpy(mask))
    assert float(mean) == pytest.approx((losses * mask).sum() / mask.sum(), rel=1e-6)
    empty = loss(memory.from_numpy(losses), None, memory.zeros((3, 4)))
    assert float(empty) == 0.0
    assert PublicLossWithMask is LossWithMask


def test_a_loss_of_user_code_gets_fp32_logits():
    seen = []

    class Own(nn.Cell):
        def construct(self, logits, label):
            seen.append(logits.dtype)
            return memory.zeros(label.shape)

    model = GPTModel(_config(compute_dtype=ms.bfloat16, params_dtype=ms.bfloat16))
    model.loss = LossWithMask(Own())
    _loss(model)
    assert seen == [ms.float32]


def test_enums_of_user_code_are_accepted_by_value():
    class Local(enum.Enum):
        causal = 2

    class Foreign(enum.Enum):
        causal = 9

    assert as_mask_type(Local.causal) is AttnMaskType.causal
    with pytest.raises(ValueError, match="must be one of"):
        as_mask_type(Foreign.causal)


def test_rotary_tables():
    half = RotaryEmbedding(8, rotary_percent=0.5, rotary_base=100)
    cos, sin = half(6)
    angles = np.outer(np.arange(6), 100.0 ** (-np.arange(0, 4, 2) / 4))
    expected = np.concatenate([angles, angles], 1)[:, None, None, :]
    np.testing.assert_allclose(cos.asnumpy(), np.cos(expected), atol=1e-6)
    np.testing.assert_allclose(sin.asnumpy(), np.sin(expected), atol=1e-6)
    interleaved, _ = RotaryEmbedding(8, rotary_interleaved=True, rotary_base=100)(6, offset=2)
    angles = np.outer(np.arange(2, 8), 100.0 ** (-np.arange(0, 8, 2) / 8))
    np.testing.assert_allclose(
        interleaved.asnumpy()[:, 0, 0], np.cos(np.repeat(angles, 2, 1)), atol=1e-6
    )
    stretched, _ = RotaryEmbedding(8, seq_len_interpolation_factor=2.0)(5)
    plain, _ = RotaryEmbedding(8)(5)
    np.testing.assert_allclose(stretched.asnumpy()[4], plain.asnumpy()[2], atol=1e-6)
    with pytest.raises(ValueError, match="must be even"):
        RotaryEmbedding(6, rotary_percent=0.5)


def test_names_of_megatron_cover_every_parameter():
    model = GPTModel(_config(**SANDWICH, qk_layernorm=True))
    theirs = megatron_names(model)
    names = set(theirs.values())
    assert "decoder.layers.0.self_attention.q_layernorm.weight" in names
    assert "decoder.layers.0.post_self_attn_layernorm.weight" in names
    assert all(name.startswith(("embedding.", "decoder.", "output_layer.")) for name in names)
    arrays = {theirs[name]: param.asnumpy() + 1.0 for name, param in named_parameters(model)}
    before = {name: param.asnumpy().copy() for name, param in named_parameters(model)}
    load_megatron_parameters(model, arrays)
    for name, param in named_parameters(model):
        np.testing.assert_array_equal(param.asnumpy(), before[name] + 1.0)
    with pytest.raises(ValueError, match="has shape"):
        load_megatron_parameters(model, {**arrays, "output_layer.weight": np.zeros((3, 16))})
    arrays.pop("output_layer.weight")
    with pytest.raises(ValueError, match="do not correspond"):
        load_megatron_parameters(model, {**arrays, "extra": np.zeros(1)})


class _Cross(enum.Enum):
    cross_attn = 2


REFUSALS = {
    "cross attention": (lambda: ParallelAttention(_config(), 1, _Cross.cross_attn), "self_attn"),
    "decoder layer": (
        lambda: ParallelTransformerLayer(_config(), 1, LayerType.decoder),
        "self-attention layers",
    ),
    "drop path": (
        lambda: ParallelTransformerLayer(_config(), 1, drop_path_rate=0.1),
        "drop_path_rate",
    ),
    "decoder": (
        lambda: get_language_model(_config(), 0, False, AttnMaskType.causal, add_decoder=True),
        "decoder-only",
    ),
    "token types": (
        lambda: GPTModel(_config(**LLAMA), num_tokentypes=2)(**_batch(), attention_mask=None),
        "tokentype_ids",
    ),
    "head bias": (
        lambda: ParallelLMLogits(_config(), bias=True)(memory.zeros((SEQ, BATCH, 16)), None),
        "bias is missing",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_exist_is_refused(name):
    build, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        build()


def test_layers_take_their_mask_type_and_have_typed_outputs():
    config = _config(**LLAMA)
    attention = ParallelAttention(config, 1, AttnType.self_attn, AttnMaskType.causal)
    x = memory.from_numpy(np.random.default_rng(3).random((SEQ, BATCH, 16)).astype(np.float32))
    output, bias = attention(x)
    assert output.shape == (SEQ, BATCH, 16) and bias is None
    output, bias = ParallelMLP(_config(**GPT2))(x)
    assert output.shape == (SEQ, BATCH, 16) and bias.shape == (16,)
    assert get_norm(_config(normalization="FusedRMSNorm"))(x).shape == x.shape
