# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts on one rank: every option against the float64 oracle, and the refusals."""

import dataclasses

import moe_reference as oracle
import numpy as np
import ops_reference as ref
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import DatasetConfig, ModelParallelConfig, MoEConfig
from mindspeed_ms.core import aux_losses
from mindspeed_ms.core.expert_bias import update_experts
from mindspeed_ms.core.parameter import named_buffers, named_parameters
from mindspeed_ms.core.recompute import checkpoint
from mindspeed_ms.core.tensor_parallel.random import seed_initialization
from mindspeed_ms.engine.parallel_setup import set_seed
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.legacy.model.megatron_names import megatron_names
from mindspeed_ms.legacy.model.moe import GroupedMLP, MoELayer, SequentialMLP, TopKRouter
from mindspeed_ms.legacy.model.moe.balance_losses import RunningCounts, sinkhorn
from mindspeed_ms.plan.recompute_plan import LayerRecompute
from mindspeed_ms.planning.parameters import chunk_parameters
from mindspeed_ms.training.yaml_styles.yaml_files import (
    init_configs_from_dict,
    init_configs_from_yaml,
)

pytestmark = pytest.mark.usefixtures("single_rank")
SEQ, BATCH, HIDDEN, WIDTH, EXPERTS = 5, 2, 6, 4, 6
# fp32 layers against float64; sums over a few dozen terms.
TOLERANCE = 3e-6


def config(num_layers=2, parallel=None, model=None, **moe):
    values = {"num_experts": EXPERTS, "moe_router_topk": 2, "moe_ffn_hidden_size": WIDTH, **moe}
    own = {
        "num_layers": num_layers,
        "num_attention_heads": 2,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": 8,
        "seq_length": SEQ,
        "init_method_std": 0.5,
        "position_embedding_type": "none",
        "dataset_config": DatasetConfig(batch_size=BATCH),
        "moe_config": MoEConfig(**values),
        "parallel_config": parallel or ModelParallelConfig(),
    }
    return model_config(LLAMA, NO_BIAS, own, **(model or {}))


def build(recompute=None, **moe):
    seed_initialization(11)
    layer = MoELayer(config(**moe), layer_number=1, recompute=recompute or LayerRecompute())
    return layer.set_train(True)


def read(layer, take):
    """(router, fc1 of all experts, fc2) in float64, whatever kind of experts the layer has."""
    found = dict(named_parameters(layer))
    stacks = [
        np.stack(
            [
                ref.values(take(found[f"experts.local_experts.{expert}.{matrix}.weight"]))
                for expert in range(layer.router.num_experts)
            ]
        )
        for matrix in ("mapping", "projection")
    ]
    return ref.values(take(found["router.weight"])), *stacks


def matrices(layer):
    return read(layer, lambda param: param)


def grads_of(layer):
    return read(layer, autograd.get_grad)


X = np.random.RandomState(2).randn(SEQ, BATCH, HIDDEN)
DY = np.random.RandomState(3).randn(SEQ, BATCH, HIDDEN)


def forward_backward(layer, x=X, dy=DY, *, begins_step=True):
    leaf = ref.leaf(ref.tensor(x))
    autograd.enable()
    if begins_step:
        aux_losses.begin_step(1.0)
    y, bias = layer(leaf)
    assert bias is None
    autograd.backward(y, ref.tensor(dy))
    return ref.values(y), ref.values(autograd.get_grad(leaf))


def compare_with_oracle(layer, options):
    """Output and every gradient, the attached losses included."""
    weights = matrices(layer)

    def total(x, router, fc1, fc2):
        attached, _ = oracle.losses(x.reshape(-1, HIDDEN) @ router.T, BATCH, options)
        return np.sum(DY * oracle.layer(x, router, fc1, fc2, options)) + attached

    y, dx = forward_backward(layer)
    ref.assert_close(y, oracle.layer(X, *weights, options), TOLERANCE, "y")
    inputs = [X, *weights]
    for index, (name, got) in enumerate(
        zip(("x", "router", "fc1", "fc2"), (dx, *grads_of(layer)), strict=True)
    ):
        for seed in range(4):
            direction = np.random.RandomState(seed).randn(*got.shape)
            ends = []
            for sign in (1, -1):
                moved = list(inputs)
                moved[index] = moved[index] + sign * 1e-5 * direction
                ends.append(total(*moved))
            slope = (ends[0] - ends[1]) / 2e-5
            size = np.linalg.norm(got) * np.linalg.norm(direction)
            assert abs(np.sum(got * direction) - slope) <= 2e-5 * size, f"gradient of {name}"


OPTIONS = {
    "softmax-after": ({}, {}),
    "softmax-before": ({"moe_router_pre_softmax": True}, {"pre_softmax": True}),
    "one-expert": (
        {"moe_router_topk": 1, "moe_router_pre_softmax": True},
        {"topk": 1, "pre_softmax": True},
    ),
    "all-experts": ({"moe_router_topk": EXPERTS}, {"topk": EXPERTS}),
    "sigmoid-scaled": (
        {"moe_router_score_function": "sigmoid", "moe_router_topk_scaling_factor": 2.5},
        {"score": "sigmoid", "scaling": 2.5},
    ),
    "sigmoid-one": (
        {"moe_router_score_function": "sigmoid", "moe_router_topk": 1},
        {"score": "sigmoid", "topk": 1},
    ),
    "groups": (
        {"moe_router_num_groups": 3, "moe_router_group_topk": 2, "moe_router_topk": 4},
        {"num_groups": 3, "group_topk": 2, "topk": 4},
    ),
    "aux-loss": (
        {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.7},
        {"aux": 0.7},
    ),
    "sequence-aux-loss-of-sigmoids": (
        {
            "moe_router_load_balancing_type": "seq_aux_loss",
            "moe_aux_loss_coeff": 0.7,
            "moe_router_score_function": "sigmoid",
        },
        {"seq_aux": 0.7, "score": "sigmoid"},
    ),
    "global-aux-loss-of-one-micro-batch": (
        {"moe_router_load_balancing_type": "global_aux_loss", "moe_aux_loss_coeff": 0.7},
        {"aux": 0.7},
    ),
    "two-losses-and-z": (
        {
            "moe_router_load_balancing_type": ("aux_loss", "seq_aux_loss"),
            "moe_aux_loss_coeff": (0.7, 0.3),
            "moe_z_loss_coeff": 0.2,
        },
        {"aux": 0.7, "seq_aux": 0.3, "z": 0.2},
    ),
    "capacity-by-probability": (
        {"moe_expert_capacity_factor": 0.6},
        {"capacity_factor": 0.6},
    ),
    "capacity-by-position": (
        {"moe_expert_capacity_factor": 0.6, "moe_token_drop_policy": "position"},
        {"capacity_factor": 0.6, "policy": "position"},
    ),
    "padded-to-capacity": (
        {"moe_expert_capacity_factor": 0.8, "moe_pad_expert_input_to_capacity": True},
        {"capacity_factor": 0.8},
    ),
    "router-in-fp64": ({"moe_router_dtype": "fp64"}, {}),
    "router-in-fp32": ({"moe_router_dtype": "fp32"}, {}),
}


@pytest.mark.parametrize("grouped", [False, True], ids=["sequential", "grouped"])
@pytest.mark.parametrize("name", OPTIONS)
def test_layer_matches_the_oracle(name, grouped):
    moe, expected = OPTIONS[name]
    compare_with_oracle(build(moe_grouped_gemm=grouped, **moe), oracle.Options(**expected))


@pytest.mark.parametrize("dispatcher", ["alltoall", "allgather", "alltoall_seq", "flex"])
def test_dispatchers_match_the_oracle(dispatcher):
    layer = build(moe_token_dispatcher_type=dispatcher, moe_expert_capacity_factor=0.9)
    compare_with_oracle(layer, oracle.Options(capacity_factor=0.9))


def test_the_bias_chooses_but_does_not_weigh():
    layer = build(moe_router_enable_expert_bias=True, moe_router_score_function="sigmoid")
    bias = np.array([0.5, -0.5, 0.3, 0.0, -0.2, 0.4], np.float32)
    memory.as_numpy(layer.router.expert_bias)[...] = bias
    compare_with_oracle(layer, oracle.Options(score="sigmoid", bias=bias))


def test_the_bias_moves_against_the_load():
    layer = build(
        moe_router_enable_expert_bias=True,
        moe_router_score_function="sigmoid",
        moe_router_bias_update_rate=0.01,
    )
    forward_backward(layer)
    forward_backward(layer)
    counts = layer.router.expert_bias.expert_load.tokens.copy()
    assert counts.sum() == 2 * SEQ * BATCH * 2
    update_experts([param for _, param in named_buffers(layer)])
    want = 0.01 * np.sign(counts.mean() - counts)
    np.testing.assert_allclose(memory.as_numpy(layer.router.expert_bias), want, atol=1e-9)
    assert layer.router.expert_bias.expert_load.tokens.sum() == 0
    assert [name for name, _ in named_buffers(layer)] == ["router.expert_bias"]
    assert "router.expert_bias" not in dict(named_parameters(layer))


def test_losses_are_recorded_per_layer_and_only_in_training():
    layer = build(
        moe_router_load_balancing_type="aux_loss",
        moe_aux_loss_coeff=0.7,
        moe_z_loss_coeff=0.1,
    )
    kinds = {"load_balancing_loss": "part", "z_loss": "mean"}
    forward_backward(layer)
    forward_backward(layer, X[::-1].copy(), begins_step=False)
    with autograd.no_grad():
        layer(ref.tensor(X))
    found = aux_losses.collect(kinds, 2, 2)
    _, want = oracle.losses(X.reshape(-1, HIDDEN) @ matrices(layer)[0].T, BATCH, oracle.Options())
    np.testing.assert_allclose(found["load_balancing_loss"], [want["aux"], 0.0], rtol=1e-6)
    np.testing.assert_allclose(found["z_loss"], [want["z"], 0.0], rtol=1e-6)
    assert aux_losses.collect(kinds, 2, 1)["z_loss"].sum() == 0.0


def test_attached_losses_get_the_scale_of_the_main_loss():
    layer = build(moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.7)
    grads = []
    for scale in (0.0, 1.0, 3.0):
        leaf = ref.leaf(ref.tensor(X))
        aux_losses.begin_step(scale)
        y, _ = layer(leaf)
        autograd.backward(y, ref.tensor(0.0 * DY))
        grads.append(ref.values(autograd.get_grad(leaf)))
    assert np.abs(grads[0]).max() == 0.0 < np.abs(grads[1]).max()
    ref.assert_close(grads[2], 3.0 * grads[1], 1e-6)


def test_counts_of_a_step_are_averaged_and_a_new_step_forgets_them():
    running = RunningCounts(np.zeros(2))
    np.testing.assert_array_equal(running.mean_with(np.array([2.0, 0.0]), 1), [2.0, 0.0])
    np.testing.assert_array_equal(running.mean_with(np.array([0.0, 4.0]), 1), [1.0, 2.0])
    np.testing.assert_array_equal(running.mean_with(np.array([0.0, 4.0]), 2), [0.0, 4.0])


def test_sinkhorn_evens_out_the_choices():
    logits = np.random.RandomState(0).randn(64, 4).astype(np.float32) + [2.0, 0.0, 0.0, 0.0]
    even = sinkhorn(logits.astype(np.float32), tolerance=1e-7)
    np.testing.assert_allclose(even.sum(axis=0), 1 / 4, rtol=1e-4)
    np.testing.assert_allclose(even.sum(axis=1), 1 / 64, rtol=1e-4)
    router = TopKRouter(
        config(moe_router_load_balancing_type="sinkhorn", moe_router_topk=1, num_experts=4)
    ).set_train(True)
    x = np.random.RandomState(1).randn(64, 1, HIDDEN) + 0.5
    busy = np.bincount(router(ref.tensor(x)).experts[:, 0], minlength=4)
    router.set_train(False)
    plain = np.bincount(router(ref.tensor(x)).experts[:, 0], minlength=4)
    assert busy.max() < plain.max()


def test_forced_balance_ignores_the_scores_but_trains_the_router():
    layer = build(moe_router_force_load_balancing=True)
    first, second = layer.router(ref.tensor(X)).experts, layer.router(ref.tensor(X)).experts
    assert (first != second).any()
    forward_backward(layer)
    assert np.abs(grads_of(layer)[0]).max() > 0


def test_jitter_changes_what_the_router_sees_and_nothing_else():
    layer = build(moe_input_jitter_eps=0.5)
    seen = [ref.values(layer.router(ref.tensor(X)).probs) for _ in range(2)]
    assert np.abs(seen[0] - seen[1]).max() > 1e-3
    layer.set_train(False)
    still = [ref.values(layer.router(ref.tensor(X)).probs) for _ in range(2)]
    np.testing.assert_array_equal(still[0], still[1])


def test_biases_of_experts_are_weighed_like_their_outputs():
    seed_initialization(11)
    layer = MoELayer(config(model={"mlp_has_bias": True}, moe_grouped_gemm=True)).set_train(True)
    found = dict(named_parameters(layer))
    biases = []
    for part, width in (("mapping", 2 * WIDTH), ("projection", HIDDEN)):
        values = np.random.RandomState(width).randn(EXPERTS, width).astype(np.float32)
        for expert in range(EXPERTS):
            param = found[f"experts.local_experts.{expert}.{part}.bias"]
            memory.as_numpy(param)[...] = values[expert]
        biases.append(values.astype(np.float64))
    router, fc1, fc2 = matrices(layer)

    def total(bias1, bias2):
        flat = X.reshape(-1, HIDDEN)
        y = np.zeros_like(flat)
        for token, weights in enumerate(oracle.route(flat @ router.T, oracle.Options())):
            for e, weight in weights.items():
                inner = oracle.swiglu(fc1[e] @ flat[token] + bias1[e])
                y[token] += weight * (fc2[e] @ inner + bias2[e])
        return y.reshape(X.shape)

    y, _ = forward_backward(layer)
    ref.assert_close(y, total(*biases), TOLERANCE, "y")
    wanted = ref.numeric_grads(lambda *b: np.sum(DY * total(*b)), biases, 1.0)
    for part, want in zip(("mapping", "projection"), wanted, strict=True):
        names = [f"experts.local_experts.{e}.{part}.bias" for e in range(EXPERTS)]
        got = np.stack([ref.values(autograd.get_grad(found[name])) for name in names])
        ref.assert_close(got, want, 2e-5, part)


@pytest.mark.parametrize("overlap", [False, True], ids=["after", "overlapped"])
@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
def test_the_shared_expert_is_added(overlap, gate):
    layer = build(
        moe_shared_expert_intermediate_size=3,
        moe_shared_expert_overlap=overlap,
        moe_shared_expert_gate=gate,
    )
    shared = layer.shared_experts
    fc1, fc2 = (ref.values(m.weight) for m in (shared.mlp.mapping, shared.mlp.projection))
    score = ref.values(shared.gate.weight) if gate else None
    weights = matrices(layer)

    def total(x):
        flat = x.reshape(-1, HIDDEN)
        added = np.array([fc2 @ oracle.swiglu(fc1 @ row) for row in flat])
        if gate:
            added *= oracle.sigmoid(flat @ score.T)
        return oracle.layer(x, *weights, oracle.Options()) + added.reshape(x.shape)

    y, dx = forward_backward(layer)
    ref.assert_close(y, total(X), TOLERANCE, "y")
    (want,) = ref.numeric_grads(lambda x: np.sum(DY[:2] * total(x)), [X[:2]], 1.0)
    ref.assert_close(dx[:2], want, 2e-5, "gradient of x")


@pytest.mark.parametrize("grouped", [False, True], ids=["sequential", "grouped"])
@pytest.mark.parametrize("form", ["moe_act", "whole"])
def test_recomputation_changes_no_number(grouped, form):
    moe = {
        "moe_grouped_gemm": grouped,
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": 0.3,
        "moe_input_jitter_eps": 0.1,
    }
    kinds = {"load_balancing_loss": "part"}
    results = []
    for again in (False, True):
        modules = frozenset({"moe_act"}) if again and form == "moe_act" else frozenset()
        set_seed(1234)
        layer = build(LayerRecompute(modules=modules), **moe)
        aux_losses.begin_step(1.0)
        aux_losses.collect(kinds, 1, 1)
        leaf = ref.leaf(ref.tensor(X))
        if again and form == "whole":
            y = checkpoint(lambda x, layer=layer: layer(x)[0], leaf)
        else:
            y, _ = layer(leaf)
        autograd.backward(y, ref.tensor(DY))
        logged = aux_losses.collect(kinds, 1, 1)["load_balancing_loss"]
        results.append(
            [ref.values(y), ref.values(autograd.get_grad(leaf)), *grads_of(layer), logged]
        )
    for plain, recomputed in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, recomputed)


def test_an_expert_without_tokens_gets_gradients_of_zero():
    for grouped in (False, True):
        layer = build(moe_grouped_gemm=grouped)
        forward_backward(layer, X[:1, :1], DY[:1, :1])
        _, fc1, fc2 = grads_of(layer)
        used = [np.abs(grad).max() > 0 for grad in fc1]
        assert sum(used) == 2 and fc1.shape[0] == EXPERTS
        assert [np.abs(grad).max() > 0 for grad in fc2] == used


def test_hooks_of_sequential_experts_see_their_calls_and_change_no_number():
    results = []
    for watched in (False, True):
        set_seed(1234)
        layer, seen = build(), []
        for expert in layer.experts.local_experts if watched else ():
            expert.projection.register_forward_hook(lambda *call, seen=seen: seen.append(call))
        results.append([*forward_backward(layer), *grads_of(layer)])
        assert len(seen) == EXPERTS * watched
    for alone, seen_one in zip(*results, strict=True):
        np.testing.assert_array_equal(alone, seen_one)


def test_only_the_named_layers_have_experts():
    model = GPTModel(config(num_layers=4, moe_layer_freq=(0, 1, 1, 0)))
    kinds = [isinstance(layer.mlp, MoELayer) for layer in model.language_model.encoder.layers]
    assert kinds == [False, True, True, False]
    every_second = config(num_layers=5, moe_layer_freq=2)
    assert [every_second.has_experts(i) for i in range(5)] == [True, False, True, False, True]


def test_names_of_experts_are_those_of_megatron():
    for grouped in (False, True):
        model = GPTModel(
            config(
                moe_grouped_gemm=grouped,
                moe_shared_expert_intermediate_size=3,
                moe_shared_expert_gate=True,
                moe_router_enable_expert_bias=True,
                moe_router_score_function="sigmoid",
            )
        )
        assert set(megatron_names(model).values()) >= {
            "decoder.layers.1.mlp.experts.local_experts.4.linear_fc1.weight",
            "decoder.layers.0.mlp.router.weight",
            "decoder.layers.0.mlp.router.expert_bias",
            "decoder.layers.0.mlp.shared_experts.linear_fc1.weight",
            "decoder.layers.0.mlp.shared_experts.linear_fc2.weight",
            "decoder.layers.0.mlp.shared_experts.gate_weight",
        }


def test_wrong_numbers_of_experts_are_refused():
    with pytest.raises(ValueError, match="num_local_experts is 3; 6 experts"):
        SequentialMLP(3, config())
    for build_part in (
        lambda: MoELayer(config(), submodules=object()),
        lambda: SequentialMLP(EXPERTS, config(), object()),
        lambda: GroupedMLP(EXPERTS, config(), object()),
    ):
        with pytest.raises(ValueError, match="submodules must be None"):
            build_part()


@pytest.mark.parametrize(
    ("moe", "message"),
    [
        ({"moe_router_topk": 1}, "softmax of one score"),
        ({"moe_router_enable_expert_bias": True}, "set it to sigmoid"),
        ({"moe_router_num_groups": 2}, "belong together"),
        (
            {"moe_router_num_groups": 4, "moe_router_group_topk": 1},
            "groups must divide the experts",
        ),
        (
            {"moe_router_num_groups": 6, "moe_router_group_topk": 2, "moe_router_topk": 4},
            "hold fewer than",
        ),
        (
            {"moe_router_load_balancing_type": "sinkhorn", "moe_aux_loss_coeff": 0.1},
            "takes no loss",
        ),
        (
            {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": (0.1, 0.2)},
            "2 values for 1 load balancing",
        ),
    ],
)
def test_contradictory_options_are_refused(moe, message):
    with pytest.raises(ValueError, match=message):
        config(**moe)


def test_one_value_lists_are_values():
    section = MoEConfig(
        num_experts=4, moe_router_load_balancing_type=["aux_loss"], moe_aux_loss_coeff=[0.1]
    )
    assert section.moe_router_load_balancing_type == "aux_loss"
    assert section.moe_aux_loss_coeff == 0.1
    assert dataclasses.replace(section).balance_coefficients() == {"aux_loss": 0.1}


@pytest.mark.parametrize("name", ["tiny_mixtral", "tiny_deepseek_v3", "tiny_qwen2_moe"])
def test_the_planner_knows_the_parameters_of_presets(name):
    whole = init_configs_from_yaml(f"{name}.yaml")
    one_rank = dataclasses.replace(
        whole.parallel_config,
        tensor_model_parallel_size=1,
        sequence_parallel=False,
        expert_model_parallel_size=1,
    )
    settings = init_configs_from_dict({**whole.to_dict(), "parallel_config": one_rank.to_dict()})
    model = GPTModel(settings.model_config)
    planned = sorted(spec.shape for spec in chunk_parameters(settings, 0, 0))
    assert planned == sorted(tuple(param.shape) for _, param in named_parameters(model))


def test_what_was_recorded_before_a_step_is_not_its_own():
    aux_losses.record("load_balancing_loss", 1, ref.tensor(np.array(5.0)))
    aux_losses.begin_step(1.0)
    aux_losses.record("load_balancing_loss", 1, ref.tensor(np.array(2.0)))
    collected = aux_losses.collect({"load_balancing_loss": "mean"}, 1, 1)
    np.testing.assert_allclose(collected["load_balancing_loss"], [2.0])
