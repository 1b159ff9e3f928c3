# SPDX-License-Identifier: Apache-2.0
"""Attention over ranks that share a sequence: the oracle is the attention on one rank."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.config import ModelParallelConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.context_parallel import (
    context_parallel,
    context_parallel_attention,
    gather_tokens,
    share_of_draws,
    sum_over_sequence,
)
from mindspeed_ms.engine.parallel_setup import set_parallel_context
from mindspeed_ms.plan.sequence_slices import positions_on_cp_rank
from mindspeed_ms.planning.communication import context_bytes_of_layer
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_dict

BATCH, HEADS, DIM, VALUE_DIM = 2, 4, 8, 6
FP32 = 2e-6
"""Sums of at most 64 products in another order."""

KINDS = {
    "causal": {},
    "full": {"causal": False},
    "documents": {"documents": True},
    "mask": {"causal": False, "mask": True},
    "dropout": {"dropout_p": 0.3},
    "documents+dropout": {"documents": True, "dropout_p": 0.3},
    "window": {"window": (3, None)},
    "window both sides": {"window": (1, 4), "causal": False},
    "window mask": {"window": (6, 2), "causal": False, "mask": True},
    "window documents dropout": {"window": (5, None), "documents": True, "dropout_p": 0.3},
    "slopes cap sinks": {"slopes": True, "softcap": 1.5, "sinks": True},
    "bias window sinks": {"bias": True, "window": (4, None), "sinks": True},
}


def layout(size, algo, degree=None):
    comm.init_process_group()
    config = ModelParallelConfig(
        context_parallel_size=size, context_parallel_algo=algo, ulysses_degree_in_cp=degree
    )
    parallel_state.initialize_model_parallel(
        context_parallel_size=size,
        hierarchical_context_parallel_sizes=config.hierarchical_context_parallel_sizes,
    )
    return context_parallel(config)


def problem(length, groups, kind, value_dim=VALUE_DIM):
    """q, k, v, dout of the whole, and what hides keys."""
    rng = np.random.default_rng(5)
    shapes = [(HEADS, DIM), (groups, DIM), (groups, value_dim), (HEADS, value_dim)]
    arrays = [rng.standard_normal((length, BATCH, *shape)).astype(np.float32) for shape in shapes]
    arrays[3] = arrays[3].reshape(length, BATCH, -1)
    options = {"scale": 0.35, "causal": True, **KINDS[kind]}
    if options.get("documents"):
        numbers = np.sort(rng.integers(0, 5, (BATCH, length)), axis=1).astype(np.int32)
        options["documents"] = ops.Documents(numbers, numbers)
    if options.get("mask"):
        hidden = rng.random((1, 1, length, length)) < 0.4
        hidden[..., 0] = False
        options["mask"] = hidden
    if options.get("slopes"):
        options["slopes"] = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
    if options.get("bias"):
        options["bias"] = rng.standard_normal((1, HEADS, length, length)).astype(np.float32)
    if options.pop("sinks", False):
        arrays.insert(3, rng.standard_normal(HEADS).astype(np.float32))
    return arrays, options


def run(function, arrays, dtype):
    """Result and gradients, as fp32 arrays."""
    tensors = [ms.Tensor(np.ascontiguousarray(a)).astype(dtype) for a in arrays]
    leaves = [autograd.requires_grad_(tensor) for tensor in tensors[:-1]]
    autograd.enable()
    out = function(*leaves)
    autograd.backward(out, tensors[-1])
    results = [out, *(autograd.get_grad(leaf) for leaf in leaves)]
    return [memory.contiguous(t).astype(ms.float32).asnumpy() for t in results]


def attention_worker(size, algo, degree, kind, **choices):
    """The largest error of ``errors_of`` a kind of attention."""
    return max(errors_of(layout(size, algo, degree), kind, **choices))


def kinds_worker(size, algo, degree):
    """The largest error of every kind."""
    context = layout(size, algo, degree)
    return {kind: max(errors_of(context, kind)) for kind in KINDS}


def errors_of(context, kind, groups=2, length=16, dtype="float32", value_dim=VALUE_DIM):
    """Largest errors of result and gradients, relative to the largest wanted value."""
    arrays, options = problem(length, groups, kind, value_dim)
    mask, bias = options.pop("mask", None), options.pop("bias", None)
    places, rows = context.positions(length), context.ring_positions(length)
    dtype = getattr(ms, dtype)
    largest = [ms.Tensor(np.full(HEADS, -1e30, np.float32)) for _ in range(2)]

    def generator():
        return Generator(11, 8) if "dropout_p" in options else None

    def given(mask, bias, at=slice(None)):
        tensors = (mask, bias if bias is None else bias)
        mask, bias = (None if t is None else ms.Tensor(t[:, :, at].copy()) for t in tensors)
        return {"mask": mask, "bias": bias, "generator": generator(), **options}

    def whole(q, k, v, sinks=None):
        return ops.attention(q, k, v, sinks=sinks, max_logits=largest[0], **given(mask, bias))

    def shared(q, k, v, sinks=None):
        more = given(mask, bias, rows)
        return context_parallel_attention(
            q, k, v, context, sinks=sinks, max_logits=largest[1], **more
        )

    wanted = run(whole, arrays, dtype)
    results = run(shared, [a[places] if a.ndim > 1 else a for a in arrays], dtype)
    if len(results) > 4:  # every rank has the part of its queries, or of its heads
        total = ms.Tensor(results[-1])
        comm.all_reduce(total, group=context.group)
        results[-1] = total.asnumpy()
    comm.all_reduce(largest[1], comm.ReduceOp.MAX, group=context.group)
    np.testing.assert_allclose(largest[1].asnumpy(), largest[0].asnumpy(), rtol=1e-5)
    return [
        float(np.abs(got - (want[places] if want.ndim > 1 else want)).max() / np.abs(want).max())
        for got, want in zip(results, wanted, strict=True)
    ]


ALGORITHMS = [
    (2, "ulysses_cp_algo", None),
    (2, "megatron_cp_algo", None),
    (2, "kvallgather_cp_algo", None),
    (4, "ulysses_cp_algo", None),
    (4, "megatron_cp_algo", None),
    (4, "kvallgather_cp_algo", None),
    (4, "hybrid_cp_algo", 2),
]


@pytest.mark.parametrize(("ranks", "algo", "degree"), ALGORITHMS)
def test_shared_attention_is_the_attention_of_one_rank(dist_run, ranks, algo, degree):
    for errors in dist_run(kinds_worker, ranks=ranks, size=ranks, algo=algo, degree=degree):
        assert max(errors.values()) < FP32, errors


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("ranks", "algo", "degree"), [ALGORITHMS[index] for index in (1, 3, 5, 6)])
def test_any_number_of_key_groups_is_shared(dist_run, ranks, algo, degree, groups):
    """One group for all heads is sent to every rank of an all-to-all."""
    for error in dist_run(
        attention_worker,
        ranks=ranks,
        size=ranks,
        algo=algo,
        degree=degree,
        kind="causal",
        groups=groups,
    ):
        assert error < FP32


@pytest.mark.parametrize("algo", ["megatron_cp_algo", "ulysses_cp_algo", "kvallgather_cp_algo"])
def test_bf16_gradients_are_summed_in_fp32(dist_run, algo):
    """Two roundings of the storage type, as on one rank; not one per rank of the ring."""
    for error in dist_run(
        attention_worker, ranks=4, size=4, algo=algo, degree=None, kind="causal", dtype="bfloat16"
    ):
        assert error < 2**-6


def traffic_worker(size, algo, degree, groups, kind="causal"):
    """Bytes this rank hands over for others in one attention, and what the planner expects."""
    counted = []

    def counting(name, bytes_sent):
        original = getattr(comm, name)

        def call(*args, **kwargs):
            counted.append(bytes_sent(*args))
            return original(*args, **kwargs)

        return name, call, original

    others = (size if degree is None else degree) - 1
    patches = [
        counting(
            "batch_isend_irecv",
            lambda ops: sum(memory.num_bytes(op.tensor) for op in ops if op.kind == "isend"),
        ),
        counting("all_gather_into_tensor", lambda out, sent, _: memory.num_bytes(sent) * others),
        counting("reduce_scatter_tensor", lambda own, _: memory.num_bytes(own) * others),
        counting(
            "all_to_all_single",
            lambda out, sent: memory.num_bytes(sent) * others // (others + 1),
        ),
    ]
    try:
        for name, call, _ in patches:
            setattr(comm, name, call)
        attention_worker(size, algo, degree, kind, groups=groups, value_dim=DIM)
    finally:
        for name, _, original in patches:
            setattr(comm, name, original)
    config = init_configs_from_dict(
        {
            "model_config": {
                "vocab_size": 16,
                "num_layers": 1,
                "hidden_size": HEADS * DIM,
                "num_attention_heads": HEADS,
                "num_query_groups": groups,
                "group_query_attention": True,
                "seq_length": 16,
                "compute_dtype": "float32",
                "window_size": KINDS[kind].get("window") and (KINDS[kind]["window"][0], 0),
            },
            "dataset_config": {"batch_size": BATCH},
            "parallel_config": {
                "context_parallel_size": size,
                "context_parallel_algo": algo,
                "ulysses_degree_in_cp": degree,
            },
        }
    )
    return sum(counted), context_bytes_of_layer(config)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("ranks", "algo", "degree"), ALGORITHMS)
def test_the_planner_knows_the_traffic(dist_run, ranks, algo, degree, groups):
    for sent, planned in dist_run(
        traffic_worker, ranks=ranks, size=ranks, algo=algo, degree=degree, groups=groups
    ):
        assert sent == planned


@pytest.mark.parametrize(("ranks", "algo", "degree"), [ALGORITHMS[i] for i in (3, 4, 5, 6)])
def test_the_planner_knows_the_traffic_of_a_window(dist_run, ranks, algo, degree):
    results = dist_run(
        traffic_worker,
        ranks=ranks,
        size=ranks,
        algo=algo,
        degree=degree,
        groups=2,
        kind="window",
    )
    assert np.mean([sent for sent, _ in results]) == pytest.approx(results[0][1])


def messages_worker(left, size=4):
    """Elements of keys, values and their gradients that all ranks send in one attention."""
    sent = []
    original = comm.batch_isend_irecv

    def counting(transfers):
        sent.extend(op.tensor.size for op in transfers if op.kind == "isend")
        return original(transfers)

    context = layout(size, "megatron_cp_algo")
    arrays, options = problem(64, 2, "causal")
    tensors = [ms.Tensor(a[context.positions(64)]) for a in arrays]
    leaves = [autograd.requires_grad_(tensor) for tensor in tensors[:-1]]
    comm.batch_isend_irecv = counting
    try:
        autograd.enable()
        options["window"] = (left, None)
        out = context_parallel_attention(*leaves, context, **options)
        autograd.backward(out, tensors[-1])
    finally:
        comm.batch_isend_irecv = original
    return sum(sent)


@pytest.mark.parametrize(
    ("left", "chunks"),
    [
        (8, 7),  # each of 8 sees the one before it; 3 and 4 are one stretch, which travels whole
        (0, 0),
        (None, 24),  # a ring: both chunks of every rank to each other one
    ],
)
def test_keys_that_are_not_seen_are_not_sent(dist_run, left, chunks):
    """Keys travel in forward and in backward, their gradients once (in a ring also home)."""
    sent = sum(dist_run(messages_worker, ranks=4, left=left))
    of_chunk = 8 * BATCH * 2 * (DIM + VALUE_DIM)
    ways = 3 if left is not None else 3 + 1 / 3
    assert sent == round(ways * chunks * of_chunk)


def order_worker():
    """What this rank does, in order: a posted batch, a wait for it, a block of scores."""
    events = []

    class Watched:
        def __init__(self, works):
            self.works = works

        def wait(self):
            events.append("wait")
            for work in self.works:
                work.wait()

    def watched(original, event):
        def call(*args, **kwargs):
            events.append(event)
            result = original(*args, **kwargs)
            return [Watched(result)] if event == "post" else result

        return call

    patched = [
        (comm, "batch_isend_irecv", "post"),
        (ops, "attention_accumulate", "forward"),
        (ops, "attention_backward_accumulate", "backward"),
    ]
    originals = [getattr(module, name) for module, name, _ in patched]
    try:
        for (module, name, event), original in zip(patched, originals, strict=True):
            setattr(module, name, watched(original, event))
        attention_worker(2, "megatron_cp_algo", None, "causal")
    finally:
        for (module, name, _), original in zip(patched, originals, strict=True):
            setattr(module, name, original)
    return events


def test_keys_travel_while_the_ring_computes(dist_run):
    forward = ["post", "forward", "wait", "forward"]
    # Keys; then gradients of the first step; then these go home.
    backward = ["post", "backward", "wait", "post", "backward", "wait", "post", "wait"]
    for events in dist_run(order_worker, ranks=2):
        assert events == forward + backward


def kept_worker(size, algo, degree):
    """Bytes that this rank keeps of one attention for backward."""
    context = layout(size, algo, degree)
    arrays, options = problem(64, 2, "causal")
    sizes = {}

    def pack(saved):
        sizes[memory.address(saved)] = memory.num_bytes(saved)
        return saved

    places = np.arange(64) if context is None else context.positions(64)
    q, k, v = (autograd.requires_grad_(ms.Tensor(a[places])) for a in arrays[:3])
    autograd.enable()
    with autograd.saved_tensors_hooks(pack, lambda saved: saved):
        if context is None:
            out = ops.attention(q, k, v, **options)
        else:
            out = context_parallel_attention(q, k, v, context, **options)
    assert out.shape[0] == len(places)
    return sum(sizes.values())


@pytest.mark.parametrize(("ranks", "algo", "degree"), ALGORITHMS)
def test_a_rank_keeps_its_share_only(dist_run, ranks, algo, degree):
    """Queries, keys, values, the result and a number per query and head; no scores, no masks."""
    per_token = BATCH * (HEADS * (DIM + VALUE_DIM) + 2 * (DIM + VALUE_DIM) + HEADS) * 4
    for kept in dist_run(kept_worker, ranks=ranks, size=ranks, algo=algo, degree=degree):
        copies = 2 if algo == "ulysses_cp_algo" and ranks == 4 else 1  # of 2 groups for 4 ranks
        keys = BATCH * 2 * (DIM + VALUE_DIM) * 4
        assert kept == 64 // ranks * (per_token + (copies - 1) * keys)


def blocks_worker(length):
    """Long enough for many blocks of the kernel, with a chunk that is no multiple of them."""
    return attention_worker(2, "megatron_cp_algo", None, "documents", length=length)


def test_chunks_need_not_be_whole_blocks(dist_run):
    for error in dist_run(blocks_worker, ranks=2, length=4 * 75):
        assert error < 2 * FP32


def exchange_worker():
    context = layout(2, "megatron_cp_algo")
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8)
    own = ms.Tensor(np.ascontiguousarray(tokens[:, context.positions(8)]))
    leaf = autograd.requires_grad_(ms.Tensor(np.float32(comm.get_rank() + 1.0)))
    autograd.enable()
    total = sum_over_sequence(leaf * 3.0, context.group)
    autograd.backward(total)
    return (
        gather_tokens(own, context),
        float(total.asnumpy()),
        float(autograd.get_grad(leaf).asnumpy()),
    )


def test_tokens_are_gathered_in_order_and_losses_add_up(dist_run):
    for tokens, total, grad in dist_run(exchange_worker, ranks=2):
        np.testing.assert_array_equal(tokens, np.arange(16).reshape(2, 8))
        assert total == 9.0 and grad == 6.0


def draws_worker():
    context = layout(2, "megatron_cp_algo")
    generator = Generator(4, 8)
    ones = ms.Tensor(np.ones((64, 8), np.float32))
    first, second = (ops.dropout(ones, 0.5, share_of_draws(generator, context)) for _ in range(2))
    return first.asnumpy(), second.asnumpy(), generator.get_state()


def test_ranks_drop_different_activations_in_lockstep(dist_run):
    whole = ops.dropout(ms.Tensor(np.ones((128, 8), np.float32)), 0.5, Generator(4, 8)).asnumpy()
    results = dist_run(draws_worker, ranks=2)
    np.testing.assert_array_equal(np.concatenate([first for first, _, _ in results]), whole)
    for first, second, state in results:
        assert not np.array_equal(first, second) and state == (4, 8 + 2 * 1024)


def groups_worker():
    comm.init_process_group()
    parallel_state.initialize_model_parallel(
        context_parallel_size=4, hierarchical_context_parallel_sizes=(2, 2)
    )
    ulysses, ring = parallel_state.get_hierarchical_context_parallel_groups()
    other = ModelParallelConfig(context_parallel_size=4, context_parallel_algo="megatron_cp_algo")
    with pytest.raises(RuntimeError, match="sizes .2, 2., but .1, 4. are asked for"):
        set_parallel_context(other)
    one_kind = context_parallel(other)  # needs no further groups
    assert (one_kind.ulysses.size, one_kind.ring.size) == (1, 4)
    parallel_state.destroy_model_parallel()
    with pytest.raises(RuntimeError, match="whose product is the context parallel size 4"):
        parallel_state.initialize_model_parallel(
            context_parallel_size=4, hierarchical_context_parallel_sizes=(2, 4)
        )
    return ulysses.ranks, ring.ranks


def test_neighbours_exchange_heads(dist_run):
    for rank, groups in enumerate(dist_run(groups_worker, ranks=4)):
        first = rank // 2 * 2
        assert groups == ((first, first + 1), (rank % 2, rank % 2 + 2))
        held = positions_on_cp_rank(16, 4, rank, "hybrid_cp_algo", 2)
        ring = positions_on_cp_rank(16, 2, rank // 2)
        np.testing.assert_array_equal(held, np.split(ring, 2)[rank % 2])
