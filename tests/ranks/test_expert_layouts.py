# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts over ranks: Megatron's run, and tokens that come back."""

import logging
from pathlib import Path

import numpy as np
import pytest
from checkpoint_runs import NO_DROPOUT, run
from tiny_models import model_config

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.command import parity
from mindspeed_ms.config import DatasetConfig, ModelParallelConfig, MoEConfig
from mindspeed_ms.core import aux_losses, parallel_state
from mindspeed_ms.core.distributed import finalize_model_grads
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
)
from mindspeed_ms.core.parameter import named_parameters, shard_of
from mindspeed_ms.core.tensor_parallel.random import seed_initialization
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.parallel_setup import set_seed
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.legacy.model.megatron_names import megatron_names
from mindspeed_ms.legacy.model.moe import MoELayer, Routing
from mindspeed_ms.legacy.model.moe.dispatch_plan import drop_over_capacity, expert_capacity
from mindspeed_ms.legacy.model.moe.experts import local_experts
from mindspeed_ms.legacy.model.moe.token_dispatcher import get_token_dispatcher
from mindspeed_ms.training import initialize_megatron, pretrain

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TP_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
EP = ["--expert-model-parallel-size", "2"]
ETP1 = ["--expert-tensor-parallel-size", "1"]
LAYOUTS = {
    "one-rank": (1, []),
    "ep2": (2, EP),
    "tp2-sp-ep2": (2, [*TP_SP, *EP, *ETP1, "--moe-grouped-gemm"]),
}
SLOW_LAYOUTS = {
    "dp2": (2, []),
    "ep2-point-to-point": (2, [*EP, "--moe-token-dispatcher-type", "flex", "--moe-grouped-gemm"]),
    "ep2-all-gather": (2, [*EP, "--moe-token-dispatcher-type", "allgather"]),
    "ep2-recompute": (2, [*EP, "--moe-layer-recompute", "--moe-grouped-gemm"]),
    "ep2-distributed-optimizer": (
        2,
        [*EP, "--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"],
    ),
    "tp2-sp-etp2": (2, TP_SP),
    "tp2-sp-ep2-etp2": (4, [*TP_SP, *EP]),
    "tp2-sp-ep4": (
        4,
        [*TP_SP, "--expert-model-parallel-size", "4", *ETP1, "--use-distributed-optimizer"],
    ),
    "tp2-sp-ep2-all-gather": (4, [*TP_SP, *EP, "--moe-token-dispatcher-type", "allgather"]),
}


PIPELINES = {
    "pp2": (2, ["--pipeline-model-parallel-size", "2"]),
    "pp2-ep2": (4, ["--pipeline-model-parallel-size", "2", *EP]),
}


def replay_worker(flags, weights=None):
    comparison = parity.replay(GOLDEN, "g_moe", flags, weights)
    return {
        "passed": comparison.passed,
        "loss": comparison.worst_loss,
        "grad_norm": comparison.worst_grad_norm,
        "layer_loss": comparison.worst_layer_loss,
        "compared_layers": comparison.layer_losses is not None,
        "logged": [step.losses["load_balancing_loss"] for step in comparison.steps],
    }


def check_replay(results):
    recorded = parity.recorded_layer_losses(parity.load_run(GOLDEN, "g_moe"))
    for result in results:
        assert result["passed"] and result["compared_layers"], result
        np.testing.assert_allclose(result["logged"], recorded.mean(axis=1), atol=1e-5)


@pytest.mark.parametrize(("ranks", "flags"), LAYOUTS.values(), ids=LAYOUTS)
def test_twenty_iterations_follow_megatron(dist_run, ranks, flags):
    # The weights are not loaded: every layout draws those that Megatron draws on one rank.
    check_replay(dist_run(replay_worker, ranks=ranks, timeout=240.0, flags=flags))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "flags"), SLOW_LAYOUTS.values(), ids=SLOW_LAYOUTS)
def test_twenty_iterations_follow_megatron_in_more_layouts(dist_run, ranks, flags):
    check_replay(dist_run(replay_worker, ranks=ranks, timeout=300.0, flags=flags))


def drawing_worker(path):
    """Write the weights that one rank draws."""
    comm.init_process_group()
    recorded = parity.recorded_flags(parity.load_run(GOLDEN, "g_moe"), GOLDEN, "unused")
    initialize_megatron(argv=[*recorded, *parity.QUIET])
    model = GPTModel(get_all_config().model_config)
    names = megatron_names(model)
    arrays = {names[name]: param.asnumpy() for name, param in named_parameters(model)}
    np.savez(path, **arrays)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "flags"), PIPELINES.values(), ids=PIPELINES)
def test_twenty_iterations_follow_megatron_in_a_pipeline(dist_run, tmp_path, ranks, flags):
    # As in Megatron every stage draws from a stream of its own: they start from files instead.
    path = tmp_path / "weights.npz"
    dist_run(drawing_worker, ranks=1, path=str(path))
    results = dist_run(replay_worker, ranks=ranks, timeout=300.0, flags=flags, weights=path)
    check_replay(results)


# ---- one layer in every layout -------------------------------------------------------------------

SEQ, BATCH, HIDDEN, EXPERTS = 8, 2, 12, 4


def start(tensor=1, expert=1, expert_tensor=None):
    comm.init_process_group()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=expert_tensor,
    )
    set_seed(1234)
    seed_initialization(5)
    autograd.enable()


def config(tensor=1, **moe):
    return model_config(
        num_layers=1,
        num_attention_heads=2,
        hidden_size=HIDDEN,
        ffn_hidden_size=16,
        seq_length=SEQ,
        init_method_std=0.5,
        hidden_act="swiglu",
        mlp_has_bias=False,
        dataset_config=DatasetConfig(batch_size=BATCH),
        moe_config=MoEConfig(
            **{"num_experts": EXPERTS, "moe_router_topk": 2, "moe_ffn_hidden_size": 8, **moe}
        ),
        parallel_config=ModelParallelConfig(
            tensor_model_parallel_size=tensor, sequence_parallel=tensor > 1
        ),
    )


def dispatch_worker(seed, tensor, expert, expert_tensor, **moe):
    """Experts that multiply a token by (their number + 1): what returns tells where it was."""
    start(tensor, expert, expert_tensor)
    settings = config(tensor, **moe)
    rng = np.random.default_rng(1000 * seed + comm.get_rank())
    tokens = int(np.random.default_rng(seed).integers(1, 20))
    liked = np.random.default_rng(seed + 7).random(EXPERTS) ** 4
    experts = np.argsort(-rng.random((tokens, EXPERTS)) * liked, axis=1)[:, :2].astype(np.int32)
    probs = rng.random((tokens, 2)).astype(np.float32)
    capacity = None
    if settings.moe_config.moe_expert_capacity_factor is not None:
        capacity = expert_capacity(
            tokens, 2, EXPERTS, settings.moe_config.moe_expert_capacity_factor
        )
        policy = settings.moe_config.moe_token_drop_policy
        experts = drop_over_capacity(experts, probs, capacity, policy)
        capacity = capacity if settings.moe_config.moe_pad_expert_input_to_capacity else None
    x = rng.standard_normal((tokens, HIDDEN)).astype(np.float32)
    leaf = autograd.requires_grad_(memory.from_numpy(x.copy()))
    weights = autograd.requires_grad_(memory.from_numpy(probs.copy()))
    indices = local_experts(
        settings.moe_config.num_experts, parallel_state.get_expert_model_parallel_group()
    )
    dispatcher = get_token_dispatcher(len(indices), indices, settings)
    rows, counts, way = dispatcher.token_permutation(leaf, Routing(weights, experts, capacity))
    # Every expert tensor parallel rank holds a part of each result.
    parts = parallel_state.get_expert_tensor_parallel_world_size()
    factors = (np.repeat(np.array(indices, np.float32), counts) + 1.0) / parts
    scaled = rows * memory.from_numpy(np.ascontiguousarray(np.tile(factors[:, None], (1, HIDDEN))))
    y = dispatcher.token_unpermutation(scaled, way)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    autograd.backward(y, memory.from_numpy(dy))
    kept = np.where(experts >= 0, probs * (experts + 1), 0.0).sum(axis=1, keepdims=True)
    dots = (x * dy).sum(axis=1, keepdims=True)
    return {
        "y": (memory.as_numpy(y) / 1.0, x * kept),
        "dx": (memory.as_numpy(memory.contiguous(autograd.get_grad(leaf))), dy * kept),
        "dprobs": (
            memory.as_numpy(memory.contiguous(autograd.get_grad(weights))),
            np.where(experts >= 0, dots * (experts + 1), 0.0),
        ),
    }


DISPATCH = {
    "ep2": (2, {"tensor": 1, "expert": 2, "expert_tensor": None}),
    "etp2": (2, {"tensor": 1, "expert": 1, "expert_tensor": 2}),
    "ep2-etp2": (4, {"tensor": 1, "expert": 2, "expert_tensor": 2}),
    "ep4": (4, {"tensor": 1, "expert": 4, "expert_tensor": None}),
}
FORMS = {
    "all-to-all": {"moe_token_dispatcher_type": "alltoall"},
    "point-to-point": {"use_self_defined_alltoall": True},
    "all-gather": {"moe_token_dispatcher_type": "allgather"},
    "dropping": {"moe_expert_capacity_factor": 0.7, "moe_token_drop_policy": "position"},
    "padding": {"moe_expert_capacity_factor": 1.1, "moe_pad_expert_input_to_capacity": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("ranks", "layout"), DISPATCH.values(), ids=DISPATCH)
def test_tokens_return_with_their_weights_and_gradients(dist_run, ranks, layout, form):
    for seed in range(3):
        for result in dist_run(dispatch_worker, ranks=ranks, seed=seed, **layout, **FORMS[form]):
            for name, (got, want) in result.items():
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=name)


def layer_worker(tensor, expert, expert_tensor, ddp=None, **moe):
    """Outputs, reduced gradients and trackers of two micro-batches, unsharded."""
    start(tensor, expert, expert_tensor)
    settings = config(
        tensor,
        moe_router_load_balancing_type=("aux_loss", "seq_aux_loss"),
        moe_aux_loss_coeff=(0.5, 0.4),
        moe_z_loss_coeff=0.2,
        moe_shared_expert_intermediate_size=6,
        moe_shared_expert_gate=True,
        **moe,
    )
    layer = MoELayer(settings, layer_number=1).set_train(True)
    for name, param in named_parameters(layer):
        param.name = name
    wrapped = DistributedDataParallel(DistributedDataParallelConfig(**(ddp or {})), layer)
    wrapped.zero_grad_buffer()
    data = parallel_state.get_data_parallel_group()
    group = parallel_state.get_tensor_model_parallel_group()
    rows = SEQ // group.size
    outputs, dxs = [], []
    mine = list(range(4))[data.rank :: data.size]
    aux_losses.begin_step(1.0 / len(mine))
    for count, batch in enumerate(mine):
        rng = np.random.default_rng(batch)
        x, dy = (rng.standard_normal((SEQ, BATCH, HIDDEN)).astype(np.float32) for _ in range(2))
        part = slice(group.rank * rows, (group.rank + 1) * rows)
        leaf = autograd.requires_grad_(memory.from_numpy(np.ascontiguousarray(x[part])))
        y, _ = wrapped(leaf)
        scaled = memory.from_numpy(np.ascontiguousarray(dy[part]) / np.float32(len(mine)))
        if count < len(mine) - 1:
            with wrapped.no_sync():
                autograd.backward(y, scaled)
        else:
            autograd.backward(y, scaled)
        outputs.append(np.concatenate(comm.all_gather_object(memory.as_numpy(y), group)))
        grad = memory.as_numpy(memory.contiguous(autograd.get_grad(leaf)))
        dxs.append(np.concatenate(comm.all_gather_object(grad, group)) * len(mine))
    finalize_model_grads([wrapped])
    kinds = {
        "load_balancing_loss": "part",
        "seq_load_balancing_loss": "part",
        "z_loss": "mean",
    }
    logged = aux_losses.collect(kinds, 1, len(mine))
    grads = {}
    for name, param in named_parameters(layer):
        owner = (
            parallel_state.get_expert_tensor_parallel_group()
            if shard_of(param).is_expert
            else group
        )
        whole = comm.all_gather_object(memory.as_numpy(param.main_grad).copy(), owner)
        grads[name] = shard_of(param).join(whole)
    return {"batches": mine, "y": outputs, "dx": dxs, "logged": logged, "grads": grads}


LAYER_LAYOUTS = {
    "tp2-etp2": (2, {"tensor": 2, "expert": 1, "expert_tensor": 2}),
    "tp2-ep2": (2, {"tensor": 2, "expert": 2, "expert_tensor": 1}),
    "dp2-ep2": (2, {"tensor": 1, "expert": 2, "expert_tensor": None}),
    "dp2-etp2": (2, {"tensor": 1, "expert": 1, "expert_tensor": 2}),
    "tp2-dp2-ep2-etp2": (4, {"tensor": 2, "expert": 2, "expert_tensor": 2}),
    "tp2-dp2-ep2-etp1": (4, {"tensor": 2, "expert": 2, "expert_tensor": 1}),
}


@pytest.mark.parametrize("form", ["alltoall", "allgather"])
@pytest.mark.parametrize(("ranks", "layout"), LAYER_LAYOUTS.values(), ids=LAYER_LAYOUTS)
def test_layer_gives_the_same_everywhere(dist_run, ranks, layout, form):
    options = {"moe_token_dispatcher_type": form, "moe_shared_expert_overlap": True}
    (single,) = dist_run(layer_worker, ranks=1, tensor=1, expert=1, expert_tensor=None, **options)
    for result in dist_run(layer_worker, ranks=ranks, **layout, **options):
        for index, batch in enumerate(result["batches"]):
            for name in ("y", "dx"):
                want = single[name][batch]
                np.testing.assert_allclose(
                    result[name][index], want, atol=2e-5 * np.abs(want).max(), err_msg=name
                )
        for name, values in result["logged"].items():
            np.testing.assert_allclose(values, single["logged"][name], rtol=1e-5, err_msg=name)
        assert result["grads"]
        for name, grad in result["grads"].items():
            want = single["grads"][name]
            np.testing.assert_allclose(grad, want, atol=2e-5 * np.abs(want).max(), err_msg=name)


def global_loss_worker(batch_size):
    """Router gradient of the global loss alone, and the loss as it is logged."""
    start()
    settings = config(moe_router_load_balancing_type="global_aux_loss", moe_aux_loss_coeff=0.5)
    layer = MoELayer(settings, layer_number=1).set_train(True)
    wrapped = DistributedDataParallel(DistributedDataParallelConfig(), layer)
    wrapped.zero_grad_buffer()
    aux_losses.begin_step(1.0)
    x = np.random.default_rng(0).standard_normal((SEQ, 2 * BATCH, HIDDEN)).astype(np.float32)
    first = parallel_state.get_data_parallel_rank() * batch_size
    x = np.ascontiguousarray(x[:, first : first + batch_size])
    y, _ = wrapped(autograd.requires_grad_(memory.from_numpy(x)))
    autograd.backward(y, memory.from_numpy(np.zeros(x.shape, np.float32)))
    finalize_model_grads([wrapped])
    logged = aux_losses.collect({"global_load_balancing_loss": "part"}, 1, 1)
    return memory.as_numpy(layer.router.weight.main_grad).copy(), logged


def test_the_global_loss_is_that_of_the_whole_batch(dist_run):
    (whole,) = dist_run(global_loss_worker, ranks=1, batch_size=2 * BATCH)
    for grad, logged in dist_run(global_loss_worker, ranks=2, batch_size=BATCH):
        np.testing.assert_allclose(grad, whole[0], rtol=1e-4, atol=1e-7)
        name = "global_load_balancing_loss"
        np.testing.assert_allclose(logged[name], whole[1][name], rtol=1e-6)


def bias_worker(**layout):
    start(**layout)
    settings = config(
        layout.get("tensor", 1),
        moe_router_enable_expert_bias=True,
        moe_router_score_function="sigmoid",
        moe_router_bias_update_rate=0.25,
    )
    layer = MoELayer(settings, layer_number=1).set_train(True)
    wrapped = DistributedDataParallel(DistributedDataParallelConfig(), layer)
    data = parallel_state.get_data_parallel_group()
    tensor = parallel_state.get_tensor_model_parallel_group()
    rows = SEQ // tensor.size
    for batch in range(4)[data.rank :: data.size]:
        x = np.random.default_rng(batch).standard_normal((SEQ, BATCH, HIDDEN)).astype(np.float32)
        part = np.ascontiguousarray(x[tensor.rank * rows : (tensor.rank + 1) * rows])
        y, _ = wrapped(autograd.requires_grad_(memory.from_numpy(part)))
        autograd.backward(y, memory.from_numpy(np.zeros(part.shape, np.float32)))
    finalize_model_grads([wrapped])
    return memory.as_numpy(layer.router.expert_bias).copy()


def test_the_expert_bias_counts_the_tokens_of_all_ranks(dist_run):
    (want,) = dist_run(bias_worker, ranks=1)
    assert set(np.abs(want)) <= {0.0, 0.25} and np.abs(want).max() > 0
    for layout in ({"tensor": 2, "expert": 2, "expert_tensor": 1}, {"expert": 2}):
        for got in dist_run(bias_worker, ranks=2, **layout):
            np.testing.assert_array_equal(got, want)


# ---- the small presets ---------------------------------------------------------------------------


def preset_worker(name, flags):
    """Losses of some iterations of a shipped configuration."""
    comm.init_process_group()
    steps = []
    initialize_megatron(
        argv=[
            *("--yaml", f"configs/{name}.yaml", "--train-iters", "6", "--lr-warmup-iters", "1"),
            *("--eval-iters", "0", *flags),
        ]
    )
    all_config = get_all_config()
    logging.getLogger("mindspeed_ms").setLevel(logging.WARNING)
    pretrain(
        None,
        lambda pre_process, post_process: GPTModel(
            all_config.model_config, pre_process=pre_process, post_process=post_process
        ),
        all_config=all_config,
        on_step=steps.append,
    )
    return [(step.losses, step.grad_norm) for step in steps]


PRESETS = {
    "tiny_mixtral": ["load_balancing_loss"],
    "tiny_deepseek_v3": ["seq_load_balancing_loss", "mtp_1 loss"],
    "tiny_qwen2_moe": ["load_balancing_loss"],
}
ONE_RANK = [
    *("--expert-model-parallel-size", "1", "--tensor-model-parallel-size", "1"),
    *("--expert-tensor-parallel-size", "1"),
]


@pytest.mark.parametrize("name", PRESETS)
def test_small_presets_train_alike_on_one_and_two_ranks(dist_run, name):
    (want,) = dist_run(preset_worker, ranks=1, timeout=240.0, name=name, flags=ONE_RANK)
    assert list(want[0][0]) == ["lm loss", *PRESETS[name]]
    assert want[-1][0]["lm loss"] < want[0][0]["lm loss"] - 0.05
    for result in dist_run(preset_worker, ranks=2, timeout=240.0, name=name, flags=[]):
        for (losses, norm), (wanted, wanted_norm) in zip(result, want, strict=True):
            assert norm == pytest.approx(wanted_norm, rel=1e-4)
            for key, value in wanted.items():
                assert losses[key] == pytest.approx(value, abs=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (2, [*ONE_RANK, "--pipeline-model-parallel-size", "2"]),
        (2, [*ONE_RANK[:2], *TP_SP, *ETP1]),
        (2, [*ONE_RANK, "--context-parallel-size", "2"]),
        (4, [*TP_SP, *EP, "--pipeline-model-parallel-size", "2", *ETP1]),
    ],
    ids=["pp2", "tp2-sp", "cp2", "tp2-sp-ep2-pp2"],
)
def test_latent_attention_and_further_tokens_in_every_layout(dist_run, ranks, flags):
    name = "tiny_deepseek_v3"
    (want,) = dist_run(preset_worker, ranks=1, timeout=240.0, name=name, flags=ONE_RANK)
    for result in dist_run(preset_worker, ranks=ranks, timeout=300.0, name=name, flags=flags):
        for (losses, norm), (wanted, wanted_norm) in zip(result, want, strict=True):
            assert norm == pytest.approx(wanted_norm, rel=1e-4)
            for key, value in wanted.items():
                assert losses[key] == pytest.approx(value, abs=1e-5), key


# ---- checkpoints ---------------------------------------------------------------------------------


def saving_worker(folder, flags):
    """A run that never stops, and one that stops and saves after its fourth iteration."""
    flags = [*flags, *NO_DROPOUT]
    straight = run("experts", flags, f"{folder}/cache")
    stop = ["--save", folder, "--save-interval", "4", "--exit-interval", "4"]
    run("experts", [*flags, *stop], f"{folder}/cache")
    return straight


def loading_worker(folder, flags):
    return run("experts", [*flags, *NO_DROPOUT, "--load", folder], f"{folder}/cache")


LATER_LAYOUTS = {
    "ep2": (2, [*EP, "--use-distributed-optimizer"]),
    "one-rank": (1, []),
    "tp2-sp": (2, [*TP_SP, *ETP1]),
}


@pytest.mark.parametrize(
    "later",
    [
        name if name == "one-rank" else pytest.param(name, marks=pytest.mark.slow)
        for name in LATER_LAYOUTS
    ],
)
def test_experts_and_biases_survive_a_stop_and_another_layout(dist_run, tmp_path, later):
    folder = str(tmp_path)
    saved = LATER_LAYOUTS["ep2"]
    first = dist_run(saving_worker, ranks=2, timeout=240.0, folder=folder, flags=saved[1])
    ranks, flags = LATER_LAYOUTS[later]
    second = dist_run(loading_worker, ranks=ranks, timeout=240.0, folder=folder, flags=flags)
    straight, resumed = first[0]["loss"], second[0]["loss"]
    assert sorted(resumed) == [5, 6, 7, 8]
    for iteration, loss in resumed.items():
        if later == "ep2":
            assert loss == straight[iteration]
        else:
            assert loss == pytest.approx(straight[iteration], abs=2e-5)
