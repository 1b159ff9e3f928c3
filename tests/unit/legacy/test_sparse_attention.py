# SPDX-License-Identifier: Apache-2.0
"""Sparse attention in a layer: recomputation, layouts of rotated channels, documents, refusals."""

import numpy as np
import ops_reference as ref
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import DatasetConfig, ModelParallelConfig
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.rules import check_layers_and_stages
from mindspeed_ms.core import aux_losses
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.core.tensor_parallel.random import seed_initialization
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.legacy.model.enums import AttnMaskType, AttnType
from mindspeed_ms.legacy.model.lightning_indexer import INDEXER_LOSS
from mindspeed_ms.legacy.model.megatron_names import megatron_names
from mindspeed_ms.legacy.model.multi_latent_attention import MultiLatentAttention, latent_rotary
from mindspeed_ms.plan.recompute_plan import LayerRecompute

pytestmark = pytest.mark.usefixtures("single_rank")
SEQ, BATCH, HIDDEN, WIDTH, ROTATED = 12, 2, 32, 8, 4
LATENT = {
    "q_lora_rank": 10,
    "kv_lora_rank": 8,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": ROTATED,
    "v_head_dim": 8,
    "rope_type": "rope",
}
SPARSE = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "seq_length": SEQ,
    "init_method_std": 0.4,
    "rotary_base": 100.0,
    "qk_layernorm": True,
    "multi_latent_attention": True,
    "mla_config": LatentAttentionConfig(**LATENT),
    "dataset_config": DatasetConfig(batch_size=BATCH),
    "experimental_attention_variant": "dsa",
    "dsa_indexer_n_heads": 6,
    "dsa_indexer_head_dim": WIDTH,
    "dsa_indexer_topk": 4,
    "dsa_indexer_loss_coeff": 0.5,
}


def settings(**changes):
    return model_config(LLAMA, NO_BIAS, SPARSE, **changes)


def build(config, recompute=()):
    seed_initialization(3)
    place = (config, 1, AttnType.self_attn, AttnMaskType.causal)
    plan = LayerRecompute(modules=frozenset(recompute))
    return MultiLatentAttention(*place, recompute=plan).set_train(True)


def states(length=SEQ, seed=5):
    return np.random.RandomState(seed).randn(length, BATCH, HIDDEN).astype(np.float32)


def run(layer, config, x, mask=None):
    """(result, loss of the indexer, gradients by name)."""
    aux_losses.begin_step(1.0)
    leaf = ref.leaf(ref.tensor(x))
    autograd.enable()
    out, _ = layer(leaf, mask, rotary_pos_emb=latent_rotary(config)(len(x)))
    autograd.backward(out, ref.tensor(np.ones(out.shape)))
    losses = aux_losses.collect({INDEXER_LOSS: "part"}, 1, 1)[INDEXER_LOSS]
    grads = {name: autograd.get_grad(param) for name, param in named_parameters(layer)}
    found = {name: ref.values(grad) for name, grad in grads.items() if grad is not None}
    return ref.values(out), losses[0], {**found, "x": ref.values(autograd.get_grad(leaf))}


@pytest.mark.parametrize("is_sparse", [False, True], ids=["loss of all", "loss of the chosen"])
@pytest.mark.parametrize("modules", [("core_attn",), ("mla_up_proj",)])
def test_recomputation_changes_no_number(modules, is_sparse):
    config = settings(dsa_indexer_use_sparse_loss=is_sparse)
    plain, again = (run(build(config, some), config, states()) for some in ((), modules))
    np.testing.assert_array_equal(plain[0], again[0])
    assert plain[1] == again[1] > 0
    assert plain[2].keys() == again[2].keys() >= {"indexer.wq_b.weight", "indexer.k_norm.beta"}
    for name, grad in plain[2].items():
        np.testing.assert_array_equal(grad, again[2][name], err_msg=name)


def test_the_indexer_learns_from_its_own_loss_alone():
    with_loss = run(build(settings()), settings(), states())
    config = settings(dsa_indexer_loss_coeff=None)
    without = run(build(config), config, states())
    assert not any(name.startswith("indexer") for name in without[2])
    for name, grad in without[2].items():
        np.testing.assert_array_equal(grad, with_loss[2][name], err_msg=name)
    assert without[1] == 0.0


def test_with_as_many_keys_as_tokens_attention_is_dense():
    config = settings(dsa_indexer_topk=SEQ)
    dense = settings(experimental_attention_variant=None)
    layer, plain = build(config), build(dense)
    for name, param in named_parameters(plain):
        ops.copy_cast_(param, dict(named_parameters(layer))[name])
    np.testing.assert_allclose(
        run(layer, config, states())[0], run(plain, dense, states())[0], atol=1e-5
    )


def moved(values, order, heads):
    """Rows of every head in another order."""
    return values.reshape(heads, WIDTH, -1)[:, order].reshape(values.shape)


@pytest.mark.parametrize("layout", ["first", "first_interleaved"])
def test_layouts_of_rotated_channels_differ_in_the_order_of_rows_alone(layout):
    plain, other = settings(), settings(dsa_indexer_rope=layout)
    turned = np.arange(WIDTH - ROTATED, WIDTH)
    if layout == "first":  # halves: all first ones of the pairs, then all second ones
        turned = np.concatenate([turned[0::2], turned[1::2]])
    order = np.concatenate([turned, np.arange(WIDTH - ROTATED)])
    layer, same = build(plain), build(other)
    known = dict(named_parameters(layer))
    for name, param in named_parameters(same):
        values = ref.values(known[name]).astype(np.float32)
        if name in ("indexer.wk.weight", "indexer.k_norm.gamma", "indexer.k_norm.beta"):
            values = moved(values, order, 1)
        elif name == "indexer.wq_b.weight":
            values = moved(values, order, 6)
        ops.copy_cast_(param, memory.from_numpy(np.ascontiguousarray(values)))
    first, second = run(layer, plain, states()), run(same, other, states())
    np.testing.assert_allclose(first[0], second[0], atol=1e-5)
    assert first[1] == pytest.approx(second[1], rel=1e-5)


def test_documents_see_themselves_alone():
    config, layer = settings(), build(settings())
    numbers = np.repeat([[0, 1]], SEQ // 2, axis=1).reshape(1, SEQ).astype(np.int32)
    numbers.sort()
    x = states()
    packed = run(layer, config, x, ops.Documents(numbers, numbers))[0]
    for half in (slice(0, SEQ // 2), slice(SEQ // 2, SEQ)):
        alone = run(layer, config, x[half])[0]
        np.testing.assert_allclose(packed[half], alone, atol=1e-5)


def test_dense_masks_are_refused_in_one_line():
    config, layer = settings(), build(settings())
    with pytest.raises(ValueError, match="not done with dense masks"):
        run(layer, config, states(), memory.from_numpy(np.zeros((SEQ, SEQ), np.bool_)))


BAD = {
    "no latent vectors": ({"multi_latent_attention": False}, "set multi_latent_attention"),
    "no sizes": ({"dsa_indexer_n_heads": None, "dsa_indexer_topk": None}, "dsa_indexer_n_heads, d"),
    "too narrow": ({"dsa_indexer_head_dim": 2}, "must be at least qk_pos_emb_head_dim"),
    "a window": ({"window_size": (4, 0)}, "window_size and"),
    "sinks": ({"softmax_type": "learnable"}, "softmax_type and"),
    "a cap": ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping and"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_go_together_is_refused(name):
    changes, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        settings(**changes)


SHARED = {"num_layers": 5, "dsa_indexer_topk_freq": 3, "dsa_indexer_skip_topk_offset": 1}
RECOMPUTED = {
    "nothing": {},
    "each layer": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
    "pairs": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 2,
    },
    "cores": {"recompute_granularity": "selective"},
}


def trained(**changes):
    """(masks by layer, loss, gradients) of two micro-batches; backward starts with the first."""
    seed_initialization(3)
    model = GPTModel(settings(**SHARED, vocab_size=32, **changes)).set_train(True)
    masks = {}
    for layer in model.language_model.encoder.layers:
        core = layer.attention.core_attention

        def note(*heads, core=core, plain=core.construct):
            masks.setdefault(core.layer_number, []).append(heads[3])
            return plain(*heads)

        core.construct = note
    aux_losses.begin_step(1.0)
    autograd.enable()
    losses = []
    for seed in range(2):
        ids = np.random.RandomState(seed).randint(0, 32, (BATCH, SEQ)).astype(np.int32)
        ids, ones = memory.from_numpy(ids), memory.from_numpy(np.ones((BATCH, SEQ), np.float32))
        places = memory.from_numpy(np.tile(np.arange(SEQ, dtype=np.int32), (BATCH, 1)))
        losses.append(model(ids, places, None, ones, labels=ids))
    for loss in losses:
        autograd.backward(loss, memory.from_numpy(np.ones(loss.shape, np.float32)))
    grads = {name: autograd.get_grad(param) for name, param in named_parameters(model)}
    return masks, {name: ref.values(g) for name, g in grads.items() if g is not None}


def test_layers_between_see_what_their_chooser_chose():
    masks, grads = trained()
    held = {name.partition("layers.")[2][0] for name in grads if ".indexer." in name}
    assert held == {"0", "3"}
    for micro_batch in range(2):
        seen = {layer: found[micro_batch] for layer, found in masks.items()}
        assert seen[1] is seen[2] is seen[3] is not seen[4]
        assert seen[4] is seen[5]
    assert masks[1][0] is not masks[1][1]


@pytest.mark.parametrize("form", [name for name in RECOMPUTED if name != "nothing"])
def test_recomputed_layers_see_what_was_chosen_in_their_forward(form):
    _, plain = trained()
    _, again = trained(**RECOMPUTED[form])
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        np.testing.assert_array_equal(grad, again[name], err_msg=name)


def test_choosers_follow_the_rule_of_megatron():
    config = settings(num_layers=12, dsa_indexer_topk_freq=4, dsa_indexer_skip_topk_offset=3)
    found = [config.chooser_of(layer, 12) + 1 for layer in range(14)]
    assert found == [1, 2, 3, 3, 3, 3, 7, 7, 7, 7, 11, 11, 13, 14]
    config = settings(num_layers=4, dsa_indexer_topk_freq=2)
    assert [config.chooser_of(layer, 4) for layer in range(4)] == [0, 0, 2, 2]


def test_a_chunk_begins_with_a_layer_that_chooses():
    parallel = ModelParallelConfig(pipeline_model_parallel_size=2)
    model = settings(num_layers=4, dsa_indexer_topk_freq=2)
    check_layers_and_stages(model, parallel)
    model = settings(num_layers=4, dsa_indexer_topk_freq=4)
    with pytest.raises(ValueError, match="layer 2 sees the keys that layer 0 chooses"):
        check_layers_and_stages(model, parallel)


def test_names_are_those_of_megatron():
    model = GPTModel(settings(num_layers=1))
    prefix = "decoder.layers.0.self_attention.core_attention.indexer."
    names = megatron_names(model).values()
    assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == {
        "linear_wq_b.weight",
        "linear_wk.weight",
        "k_norm.weight",
        "k_norm.bias",
        "linear_weights_proj.weight",
    }
