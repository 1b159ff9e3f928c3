# SPDX-License-Identifier: Apache-2.0
"""Layers that predict further tokens: what they see, what they add, what is logged."""

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import DatasetConfig, MoEConfig
from mindspeed_ms.core import aux_losses
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.core.tensor_parallel.random import seed_initialization
from mindspeed_ms.engine.layer_losses import collect_layer_losses, mean_layer_losses
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.legacy.model.gpt_model import post_language_model_processing
from mindspeed_ms.legacy.model.megatron_names import load_megatron_parameters, megatron_names
from mindspeed_ms.legacy.model.multi_token_prediction import moved_ahead

pytestmark = pytest.mark.usefixtures("single_rank")
BATCH, SEQ, VOCAB, HIDDEN = 2, 8, 32, 16


def config(**changes):
    own = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "seq_length": SEQ,
        "untie_embeddings_and_output_weights": True,
        "dataset_config": DatasetConfig(batch_size=BATCH),
    }
    return model_config(LLAMA, NO_BIAS, own, **changes)


def build(**changes):
    seed_initialization(7)
    return GPTModel(config(**changes)).set_train(True)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, VOCAB, (BATCH, SEQ + 1)).astype(np.int32)
    mask = (rng.random((BATCH, SEQ)) < 0.8).astype(np.float32)
    return {
        "tokens": memory.from_numpy(np.ascontiguousarray(ids[:, :-1])),
        "labels": memory.from_numpy(np.ascontiguousarray(ids[:, 1:])),
        "position_ids": memory.from_numpy(np.tile(np.arange(SEQ, dtype=np.int32), (BATCH, 1))),
        "loss_mask": memory.from_numpy(mask),
    }


def grads(model):
    return {name: ref.values(autograd.get_grad(param)) for name, param in named_parameters(model)}


def clear(model):
    for _, param in named_parameters(model):
        autograd.set_grad(param, None)


def test_places_move_ahead_and_the_last_gets_nothing():
    got = moved_ahead(memory.from_numpy(np.array([[1, 2, 3], [4, 5, 6]], np.int32)), None)
    np.testing.assert_array_equal(got.asnumpy(), [[2, 3, 0], [5, 6, 0]])
    assert got.dtype == ms.int32


@pytest.mark.parametrize("depths", [1, 2])
def test_losses_and_gradients_are_those_of_the_formula(depths):
    """L = main + factor / K * sum of the losses of the tokens 2, ... K + 1 ahead."""
    model = build(mtp_num_layers=depths, mtp_loss_scaling_factor=0.6)
    arguments = batch()
    aux_losses.begin_step(1.0)
    collect_layer_losses(model.config, 1)
    loss = model(attention_mask=None, **arguments)
    autograd.backward(loss)
    got, logged = grads(model), collect_layer_losses(model.config, 1)
    clear(model)

    inner = model.language_model
    tokens, labels, mask = (arguments[name] for name in ("tokens", "labels", "loss_mask"))
    hidden = inner(tokens, arguments["position_ids"], None)

    def head(states, labels, mask):
        return post_language_model_processing(
            model.parallel_lm_logits,
            model.loss,
            states,
            labels,
            inner.output_layer.weight,
            True,
            False,
            mask,
        )

    main = head(hidden, labels, mask)
    assert float(main) == float(loss)
    total, states, further = main, hidden, []
    rotary = inner.rotary_pos_emb(SEQ)
    for layer in inner.mtp.layers:
        tokens, labels, mask = (moved_ahead(item, None) for item in (tokens, labels, mask))
        both = ms.ops.cat(
            [
                layer.enorm(inner.embedding(tokens, arguments["position_ids"])),
                layer.hnorm(states),
            ],
            axis=-1,
        )
        states = layer.final_norm(layer.transformer_layer(layer.eh_proj(both)[0], None, rotary))
        further.append(head(states, labels, mask))
        total = total + further[-1] * (0.6 / depths)
    autograd.backward(total)
    for name, want in grads(model).items():
        ref.assert_close(got[name], want, 1e-5, name)
    means = mean_layer_losses(model.config, logged)
    assert list(means) == [f"mtp_{depth + 1} loss" for depth in range(depths)]
    np.testing.assert_allclose(list(means.values()), [float(value) for value in further], rtol=1e-6)


def test_evaluation_takes_the_main_loss_only():
    model = build(mtp_num_layers=1)
    plain = build()
    with autograd.no_grad():
        found = float(model(attention_mask=None, **batch()))
    aux_losses.begin_step(1.0)
    assert collect_layer_losses(model.config, 1)["mtp_1 loss"].sum() == 0.0
    theirs = megatron_names(model)
    shared = {
        theirs[name]: memory.as_numpy(param).copy()
        for name, param in named_parameters(model)
        if ".mtp." not in name
    }
    load_megatron_parameters(plain, shared)
    with autograd.no_grad():
        assert found == float(plain(attention_mask=None, **batch()))


def test_the_mask_moves_with_the_labels():
    model = build(mtp_num_layers=1)
    arguments = batch()
    mask = memory.as_numpy(arguments["loss_mask"])
    mask[:] = 0.0
    mask[:, 0] = 1.0  # the label that counts is the first, and no place predicts it two ahead
    aux_losses.begin_step(1.0)
    collect_layer_losses(model.config, 1)
    autograd.backward(model(attention_mask=None, **arguments))
    assert collect_layer_losses(model.config, 1)["mtp_1 loss"][0] == 0.0
    assert np.abs(grads(model)["language_model.mtp.layers.0.eh_proj.weight"]).max() == 0.0


def test_a_stage_without_tokens_is_told_so():
    model = build(mtp_num_layers=1)
    _, labels, mask = (batch()[name] for name in ("tokens", "labels", "loss_mask"))
    with pytest.raises(ValueError, match="let get_batch_func return tokens on every stage"):
        model._further_losses(None, None, (None, labels, mask), None, None)


def test_names_are_those_of_megatron():
    model = build(mtp_num_layers=1, untie_embeddings_and_output_weights=False)
    names = set(megatron_names(model).values())
    assert {name for name in names if name.startswith("mtp.")} == {
        "mtp.layers.0.enorm.weight",
        "mtp.layers.0.hnorm.weight",
        "mtp.layers.0.eh_proj.weight",
        "mtp.layers.0.transformer_layer.input_layernorm.weight",
        "mtp.layers.0.transformer_layer.self_attention.linear_proj.weight",
        "mtp.layers.0.transformer_layer.self_attention.linear_qkv.weight",
        "mtp.layers.0.transformer_layer.pre_mlp_layernorm.weight",
        "mtp.layers.0.transformer_layer.mlp.linear_fc1.weight",
        "mtp.layers.0.transformer_layer.mlp.linear_fc2.weight",
        "mtp.layers.0.final_layernorm.weight",
    }


def test_balance_losses_of_layers_behind_the_model_are_counted():
    experts = MoEConfig(
        num_experts=4,
        moe_router_load_balancing_type="aux_loss",
        moe_aux_loss_coeff=0.1,
        moe_ffn_hidden_size=8,
        moe_layer_freq=(0, 1),
    )
    model = build(mtp_num_layers=1, moe_config=experts)
    aux_losses.begin_step(1.0)
    collect_layer_losses(model.config, 1)
    autograd.backward(model(attention_mask=None, **batch()))
    found = collect_layer_losses(model.config, 1)
    values = found["load_balancing_loss"]
    assert values[0] == 0.0 and (values[1:] > 0.9).all() and len(values) == 3
    mean = mean_layer_losses(model.config, found)["load_balancing_loss"]
    assert mean == pytest.approx(values[1:].mean())


def test_full_recomputation_changes_no_number():
    results = []
    for form in (
        {},
        {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        },
    ):
        model = build(mtp_num_layers=2, **form)
        loss = model(attention_mask=None, **batch())
        autograd.backward(loss)
        results.append({"loss": float(loss), **grads(model)})
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name], err_msg=name)
