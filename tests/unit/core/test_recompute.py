# SPDX-License-Identifier: Apache-2.0
"""Recomputation: the same gradients and masks, less memory, in every form it can be asked for."""

import tracemalloc
import weakref
from functools import partial

import numpy as np
import pytest
from tiny_models import LLAMA, model_config

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import DatasetConfig, ModelParallelConfig
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.core.recompute import checkpoint, forgotten
from mindspeed_ms.core.tensor_parallel import get_rng_tracker
from mindspeed_ms.core.tensor_parallel.random import seed_initialization
from mindspeed_ms.engine.parallel_setup import set_seed
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.recompute_plan import check_recompute, count_at, recompute_plan

pytestmark = pytest.mark.usefixtures("single_rank")
BATCH, SEQ, VOCAB = 2, 16, 32
FORMS = {
    "uniform": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 2,
    },
    "block": {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 2,
    },
    "selective": {"recompute_granularity": "selective"},
    "modules": {
        "recompute_granularity": "selective",
        "recompute_modules": ("core_attn", "mlp_act", "layernorm"),
    },
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ("mlp", "layernorm")},
    "lists": {
        "parallel_config": ModelParallelConfig(
            recompute=(1,), select_recompute=True, select_comm_recompute=((2,),)
        )
    },
}


def config(num_layers=3, **changes):
    own = {
        "vocab_size": VOCAB,
        "seq_length": SEQ,
        "dataset_config": DatasetConfig(batch_size=BATCH),
    }
    return model_config(LLAMA, own, num_layers=num_layers, **changes)


def build(**changes):
    seed_initialization(7)
    return GPTModel(config(**changes))


def batch(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, (BATCH, SEQ + 1)).astype(np.int32)
    return {
        "tokens": memory.from_numpy(np.ascontiguousarray(ids[:, :-1])),
        "labels": memory.from_numpy(np.ascontiguousarray(ids[:, 1:])),
        "position_ids": memory.from_numpy(np.tile(np.arange(SEQ, dtype=np.int32), (BATCH, 1))),
        "attention_mask": None,
        "loss_mask": memory.from_numpy(np.ones((BATCH, SEQ), np.float32)),
    }


def gradients(model, dropout_seed=3, microbatches=3):
    """Losses and gradients with all forwards before the first backward, as in a warm-up."""
    set_seed(dropout_seed)
    totals = {}

    def collect(name, grad):
        totals[name] = totals.get(name, 0.0) + memory.as_numpy(memory.contiguous(grad))

    hooks = [
        autograd.take_gradients(param, partial(collect, name))
        for name, param in named_parameters(model)
    ]
    losses = [model(**batch(seed)) for seed in range(microbatches)]
    for loss in losses:
        autograd.backward(loss)
    for hook in hooks:
        hook.remove()
    return [float(loss) for loss in losses], totals


ONE_NORM = {
    **{"normalization": "LayerNorm", "norm_has_bias": False},
    **{"use_parallel_residual": True, "shares_input_norm": True},
    **{"qk_layernorm": True, "qk_layernorm_per_head": True, "clip_qkv": 1.0},
}


@pytest.mark.parametrize("rate", [0.0, 0.2], ids=["plain", "dropout"])
@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_are_bit_identical(form, rate):
    """With dropout this also shows that masks are repeated with several micro-batches in flight."""
    compare_with_all_kept(form, rate)


@pytest.mark.parametrize("form", ["modules", "mlp"])
def test_a_norm_that_two_blocks_read_is_computed_again(form):
    compare_with_all_kept(form, 0.2, **ONE_NORM)


def compare_with_all_kept(form, rate, **model):
    rates = {"hidden_dropout_rate": rate, "attention_dropout_rate": rate, **model}
    plain_losses, plain = gradients(build(**rates).set_train(True))
    losses, again = gradients(build(**rates, **FORMS[form]).set_train(True))
    assert losses == plain_losses
    assert again.keys() == plain.keys()
    for name, grad in plain.items():
        np.testing.assert_array_equal(again[name], grad, err_msg=name)


def test_random_streams_go_on_where_the_forward_left_them():
    weight = autograd.requires_grad_(memory.from_numpy(np.ones(8, np.float32)))

    def noisy(x):
        return ops.dropout(x * weight, 0.5, get_rng_tracker().current())

    set_seed(1)
    x = autograd.requires_grad_(memory.from_numpy(np.ones((4, 8), np.float32)))
    first, second = checkpoint(noisy, x), checkpoint(noisy, x)
    before = get_rng_tracker().get_states()
    assert not np.array_equal(first.asnumpy(), second.asnumpy())
    autograd.backward(first)
    np.testing.assert_array_equal(autograd.get_grad(x).asnumpy(), first.asnumpy())
    assert get_rng_tracker().get_states() == before


def test_a_checkpoint_keeps_its_inputs_only():
    x = autograd.requires_grad_(memory.from_numpy(np.ones((4, 8), np.float32)))
    made = []

    def two_steps(x):
        middle = ops.silu(x)
        made.append(weakref.ref(middle))
        return ops.silu(middle)

    kept = ops.silu(ops.silu(x))
    result = checkpoint(two_steps, x)
    assert made[0]() is None
    autograd.backward(result)
    expected = memory.as_numpy(autograd.get_grad(x)).copy()
    autograd.set_grad(x, None)
    autograd.backward(kept)
    np.testing.assert_array_equal(memory.as_numpy(autograd.get_grad(x)), expected)


def test_parameters_get_gradients_when_no_input_needs_one():
    """The first layer behind a frozen embedding."""
    weight = autograd.requires_grad_(memory.from_numpy(np.full(8, 2.0, np.float32)))
    x = memory.from_numpy(np.ones((4, 8), np.float32))
    autograd.backward(checkpoint(lambda value: value * weight, x))
    np.testing.assert_array_equal(autograd.get_grad(weight).asnumpy(), np.full(8, 4.0))


def test_nothing_is_recorded_without_gradients():
    calls = []
    x = memory.from_numpy(np.ones(3, np.float32))
    with autograd.no_grad():
        result = checkpoint(lambda value: calls.append(1) or value * 2.0, x)
    assert calls == [1] and not autograd.requires_grad(result)


def test_a_forgotten_output_is_computed_again():
    calls = []
    x = autograd.requires_grad_(memory.from_numpy(np.linspace(-1, 1, 8, dtype=np.float32)))

    def activation(value):
        calls.append(1)
        return ops.silu(value)

    activated = activation(x)
    alive = weakref.ref(activated)
    with forgotten(activated, activation, x):
        result = ops.silu(activated)
    del activated
    assert alive() is None and calls == [1]
    autograd.backward(result)
    grad = memory.as_numpy(autograd.get_grad(x)).copy()
    assert calls == [1, 1]
    autograd.set_grad(x, None)
    autograd.backward(ops.silu(ops.silu(x)))
    np.testing.assert_array_equal(memory.as_numpy(autograd.get_grad(x)), grad)


def activation_bytes(**changes):
    """What the graph of one forward keeps; NumPy reports its buffers to tracemalloc."""
    sizes = {"hidden_size": 64, "ffn_hidden_size": 176, "seq_length": SEQ}
    model = build(num_layers=24, **sizes, **changes).set_train(True)
    model(**batch(0))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    loss = model(**batch(0))
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    autograd.backward(loss)
    return after - before


def test_full_recompute_of_24_layers_frees_most_activation_memory():
    plain = activation_bytes()
    full = activation_bytes(**FORMS["uniform"])
    parts = activation_bytes(**FORMS["modules"])
    assert full < 0.4 * plain, f"{full} of {plain} bytes"
    assert full < parts < 0.9 * plain, f"{parts} of {plain} bytes"


# --- which layer does what


def plan_of(num_layers, stage, chunk=0, model=None, **parallel):
    parallel_config = ModelParallelConfig.from_dict(parallel)
    whole = config(num_layers, parallel_config=parallel_config, **(model or {}))
    placement = layer_placement(whole, parallel_config)
    return recompute_plan(whole, parallel_config, placement, (stage, chunk))


PP2 = {"pipeline_model_parallel_size": 2}
VPP2 = {**PP2, "virtual_pipeline_model_parallel_size": 2}


def groups(plan):
    return [(group.layers, group.is_recomputed) for group in plan.groups]


def test_uniform_groups_all_layers_of_a_chunk():
    plan = plan_of(6, 1, model={**FORMS["uniform"]}, **PP2)
    assert groups(plan) == [((3, 4), True), ((5,), True)]


def test_block_takes_the_first_layers_of_every_chunk():
    plan = plan_of(6, 0, model={**FORMS["block"]}, **PP2)
    assert groups(plan) == [((0,), True), ((1,), True), ((2,), False)]


def test_counts_per_stage_run_through_the_chunks():
    shape = {**VPP2, "recompute": [3, 0]}
    assert groups(plan_of(8, 0, 0, **shape)) == [((0,), True), ((1,), True)]
    assert groups(plan_of(8, 0, 1, **shape)) == [((4,), True), ((5,), False)]
    assert groups(plan_of(8, 1, 0, **shape)) == [((2, 3), False)]


def test_counts_per_chunk_and_stage_name_the_first_layers():
    shape = {**VPP2, "recompute": [[1, 0], [0, 2]], "select_comm_recompute": [[0, 1], [2, 0]]}
    assert groups(plan_of(8, 0, 0, **shape)) == [((0,), True), ((1,), False)]
    assert groups(plan_of(8, 1, 1, **shape)) == [((6,), True), ((7,), True)]
    keeps = {
        layer: detail.keeps_gathered
        for place in ((0, 0), (0, 1), (1, 0), (1, 1))
        for layer, detail in plan_of(8, *place, **shape).layers.items()
    }
    assert [layer for layer, kept in sorted(keeps.items()) if not kept] == [2, 4, 5]


def test_the_gather_is_repeated_everywhere_by_default():
    assert not any(layer.keeps_gathered for layer in plan_of(4, 0).layers.values())
    off = plan_of(4, 0, select_comm_recompute=False)
    assert all(layer.keeps_gathered for layer in off.layers.values())


def test_a_layer_recomputed_as_a_whole_has_no_parts():
    plan = plan_of(3, 0, recompute=1, select_recompute=2)
    selected = ["core_attn", "mlp_act", "moe_act"]
    assert [sorted(plan.layers[i].modules) for i in range(3)] == [[], selected, []]


@pytest.mark.parametrize(
    ("parallel", "model", "message"),
    [
        ({**PP2, "recompute": [1]}, {}, "has 1 counts, but there are 2 pipeline stages"),
        ({**PP2, "recompute": [1, 3]}, {}, "3 layers on stage 1, which has 2"),
        ({**VPP2, "select_recompute": [[1, 1]]}, {}, "one row per model chunk"),
        ({**VPP2, "select_comm_recompute": [[1, 1], [1, 2]]}, {}, "2 layers on stage 1"),
        ({"recompute": [1]}, FORMS["selective"], "keep one of them"),
        ({}, {"recompute_modules": ("mlp",)}, "needs recompute_granularity selective"),
        (
            {},
            {"recompute_granularity": "selective", "recompute_modules": ("embedding",)},
            "names 'embedding'",
        ),
    ],
)
def test_contradictions_and_wrong_lists_are_refused(parallel, model, message):
    parallel_config = ModelParallelConfig.from_dict(parallel)
    whole = config(4, parallel_config=parallel_config, **model)
    with pytest.raises(ValueError, match=message):
        check_recompute(whole, parallel_config, layer_placement(whole, parallel_config))


def test_a_number_or_a_switch_means_every_stage():
    parallel_config = ModelParallelConfig.from_dict(PP2)
    placement = layer_placement(config(5, parallel_config=parallel_config), parallel_config)
    assert [count_at(True, placement, (stage, 0), "x") for stage in (0, 1)] == [2, 3]
    assert [count_at(3, placement, (stage, 0), "x") for stage in (0, 1)] == [2, 3]
    assert count_at(None, placement, (0, 0), "x") == count_at(False, placement, (0, 0), "x") == 0
