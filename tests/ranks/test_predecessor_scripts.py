# SPDX-License-Identifier: Apache-2.0
"""Scripts written against the predecessor's API, on several ranks."""

import mindspore as ms
import numpy as np
import pytest
import tiny_models
from mindspore import Parameter, Tensor, mint, nn, ops
from mindspore.common.api import _pynative_executor

from mindspeed_ms import ops as package_ops
from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.config import (
    ModelParallelConfig,
    MoEConfig,
    OptimizerConfig,
    TrainingConfig,
    TransformerConfig,
    set_global_args,
)
from mindspeed_ms.core.context_parallel.flash_sp import FlashSP
from mindspeed_ms.core.context_parallel.ring_attention import RingAttention
from mindspeed_ms.core.context_parallel.ulysses_context_parallel import UlyssesContextAttention
from mindspeed_ms.core.context_parallel.utils import (
    get_batch_on_this_cp_rank,
    get_sp_chuncks,
    get_sp_chuncks_attn_mask_general,
    get_sp_chuncks_general,
)
from mindspeed_ms.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from mindspeed_ms.core.optimizer import get_optimizer
from mindspeed_ms.core.optimizer.distrib_optimizer import DistributedOptimizer
from mindspeed_ms.core.parallel_state import initialize_model_parallel
from mindspeed_ms.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from mindspeed_ms.core.tensor_parallel.random import (
    DATA_PARALLEL_GENERATOR,
    TENSOR_PARALLEL_GENERATOR,
    get_rng_tracer,
    get_rng_tracker,
    set_rng_seed,
)
from mindspeed_ms.legacy.model import Embedding, ParallelLMLogits, ParallelMLP
from mindspeed_ms.legacy.model.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from mindspeed_ms.training import ParallelTrainingReducer, TrainOneStepCell
from mindspeed_ms.training.training import train


@pytest.fixture(autouse=True)
def tape_is_off():
    """As in a script's own process, whatever ran here before."""
    _pynative_executor.set_grad_flag(False)


def begin(**sizes):
    """What every script does first, in a process whose tape is off, as a script's is."""
    _pynative_executor.set_grad_flag(False)
    parallel_state.destroy_model_parallel()
    comm.init_process_group()
    initialize_model_parallel(**sizes)


class TwoLayers(nn.Cell):
    """Sum of squares behind two dense layers."""

    def __init__(self, seed=0):
        super().__init__()
        rng = np.random.default_rng(seed)

        def weight(*shape):
            return Tensor(rng.normal(size=shape).astype(np.float32))

        self.first = nn.Dense(4, 6, weight_init=weight(6, 4), bias_init=weight(6))
        self.second = nn.Dense(6, 3, weight_init=weight(3, 6), bias_init=weight(3))

    def construct(self, x):
        return self.second(ops.tanh(self.first(x))).square().mean()


def rows(rank, count=4):
    return np.random.default_rng(10 + rank).normal(size=(count, 4)).astype(np.float32)


# --- AdamW of numpy, on all rows


def reference(steps, ranks, learning_rate=0.05, seed=0):
    """Losses per rank and the last weights, by value_and_grad and AdamW in numpy."""
    net = TwoLayers(seed)
    params = net.trainable_params()
    moments = [(np.zeros(p.shape, np.float32), np.zeros(p.shape, np.float32)) for p in params]
    gradient = ops.value_and_grad(net, None, params)
    losses = []
    for step in range(1, steps + 1):
        found = [gradient(Tensor(rows(rank))) for rank in range(ranks)]
        losses.append([float(loss.asnumpy()) for loss, _ in found])
        for index, param in enumerate(params):
            grad = np.mean([grads[index].asnumpy() for _, grads in found], axis=0)
            m, v = moments[index]
            m += 0.1 * (grad - m)
            v += 0.001 * (grad**2 - v)
            update = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
            param.set_data(Tensor(param.asnumpy() - learning_rate * update))
    return np.array(losses), [param.asnumpy() for param in params]


def distributed_worker(way, sharded, overlap):
    begin()
    rank = comm.get_rank()
    parallel = ModelParallelConfig()
    training = TrainingConfig(
        parallel, wrap_with_ddp=True, use_distributed_optimizer=sharded, training_iters=3
    )
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=sharded, overlap_grad_reduce=overlap, bucket_size=10
    )
    network = DistributedDataParallel(training, ddp_config, TwoLayers())
    assert isinstance(network, nn.Cell)
    config = OptimizerConfig(parallel, learning_rate=0.05, overlap_param_gather=False)
    if way == "wrapped":
        inner = mint.optim.AdamW(list(network.get_parameters()), lr=0.05, weight_decay=0.0)
        group = parallel_state.get_data_parallel_group()
        optimizer = DistributedOptimizer(inner, config, None, None, [network.buffers], group)
    else:
        optimizer = get_optimizer(config, training, network.trainable_params(), network)
    losses = []
    if way == "own loop":
        gradient = ops.value_and_grad(network, None, network.trainable_params())
        for _ in range(3):
            network.zero_grad_buffer()
            loss, grads = gradient(Tensor(rows(rank)))
            network.final_grad_reduce()
            optimizer(grads)
            losses.append(float(loss.asnumpy()))
    else:
        step = TrainOneStepCell(network, optimizer, None, training, None)
        losses = train(step, [{"x": Tensor(rows(rank))}] * 3, training)
    return losses, [param.asnumpy() for param in network.trainable_params()]


@pytest.mark.parametrize(
    ("way", "sharded", "overlap"),
    [
        ("wrapped", True, True),
        ("get_optimizer", True, False),
        ("get_optimizer", False, True),
        ("own loop", True, False),
        ("own loop", False, False),
    ],
)
def test_ddp_and_its_optimizers_are_adamw(dist_run, way, sharded, overlap):
    results = dist_run(distributed_worker, ranks=2, way=way, sharded=sharded, overlap=overlap)
    losses, weights = reference(3, 2)
    for rank, (found, params) in enumerate(results):
        np.testing.assert_allclose(found, losses[:, rank], rtol=1e-5)
        for ours, theirs in zip(params, weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def plain_worker(optimizer, reduction):
    begin()
    training = TrainingConfig(ModelParallelConfig(), loss_reduction=reduction)
    net = TwoLayers()
    if optimizer == "nn.SGD":
        made = nn.SGD(net.trainable_params(), learning_rate=0.05)
    else:
        config = OptimizerConfig(optimizer_type="SGD", learning_rate=0.05, sgd_momentum=0.0)
        made = get_optimizer(config, training, net.trainable_params(), net)
    step = TrainOneStepCell(net, made, None, training)
    loss, is_finite, scale, rate, norm = step(Tensor(rows(comm.get_rank())))
    return [param.asnumpy() for param in net.trainable_params()], float(norm)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("optimizer", ["nn.SGD", "get_optimizer"])
def test_gradients_are_averaged_or_summed(dist_run, optimizer, reduction):
    results = dist_run(plain_worker, ranks=2, optimizer=optimizer, reduction=reduction)
    net = TwoLayers()
    params = net.trainable_params()
    gradient = ops.value_and_grad(net, None, params)
    grads = [gradient(Tensor(rows(rank)))[1] for rank in range(2)]
    combine = np.mean if reduction == "mean" else np.sum
    expected = [combine([grad[i].asnumpy() for grad in grads], axis=0) for i in range(len(params))]
    norm = np.sqrt(sum((grad**2).sum() for grad in expected))
    for weights, found in results:
        assert found == pytest.approx(norm, rel=1e-5)
        for param, grad, ours in zip(params, expected, weights, strict=True):
            np.testing.assert_allclose(ours, param.asnumpy() - 0.05 * grad, rtol=1e-4, atol=1e-6)


# --- reducer


def reducer_worker():
    begin(tensor_model_parallel_size=2)
    rank = comm.get_rank()
    parallel = ModelParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
    params = [
        Parameter(Tensor(np.zeros(3, np.float32)), name=name)
        for name in ("mlp.mapping.weight", "input_norm.weight")
    ]
    grads = [Tensor(np.full(3, rank + 1.0, np.float32)) for _ in params]
    reducer = ParallelTrainingReducer(params, TrainingConfig(parallel))
    reducer.inplace_reduce_dp_grad(grads)
    after_data = [grad.asnumpy()[0] for grad in grads]
    reducer.inplace_reduce_sp_grad(grads, params)
    flags = (
        bool(reducer.reduce_is_finite(Tensor(rank != 1)).asnumpy()),
        reducer.reduce_overflow(rank == 1),
    )
    return after_data, [grad.asnumpy()[0] for grad in grads], flags


def test_the_reducer(dist_run):
    results = dist_run(reducer_worker, ranks=4)
    for rank, (after_data, after_sequence, flags) in enumerate(results):
        mean = (rank % 2 + 1 + rank % 2 + 3) / 2
        assert after_data == [mean, mean]
        assert after_sequence == [mean, 5.0]  # 2 + 3, over the tensor parallel ranks
        assert flags == ((False, True) if rank < 2 else (True, False))


# --- layers: transposed weights, ZeRO


class ParallelNet(nn.Cell):
    """A column and a row layer, weights stored either way."""

    def __init__(self, config, transpose_b):
        super().__init__()
        rng = np.random.default_rng(3)
        first, second = (rng.normal(size=(8, 4)), rng.normal(size=(4, 8)))

        def values(matrix):
            matrix = matrix.astype(np.float32)
            return lambda shape: matrix if transpose_b else np.ascontiguousarray(matrix.T)

        self.mapping = ColumnParallelLinear(
            4, 8, config=config, init_method=values(first), bias=True, transpose_b=transpose_b
        )
        self.projection = RowParallelLinear(
            8,
            4,
            config=config,
            init_method=values(second),
            bias=False,
            input_is_parallel=True,
            transpose_b=transpose_b,
        )

    def construct(self, x):
        return self.projection(ops.tanh(self.mapping(x)[0]))[0].square().mean()


def zero_worker(level, transpose_b, tensor):
    begin(tensor_model_parallel_size=tensor)
    parallel = ModelParallelConfig(tensor_model_parallel_size=tensor, zero_level=level)
    training = TrainingConfig(parallel)
    net = ParallelNet(parallel, transpose_b)
    config = OptimizerConfig(parallel, optimizer_type="AdamW", learning_rate=0.05)
    optimizer = get_optimizer(config, training, net.trainable_params(), net)
    step = TrainOneStepCell(net, optimizer, None, training)
    data_rank = parallel_state.get_data_parallel_rank()
    x = np.random.default_rng(data_rank).normal(size=(3, 2, 4)).astype(np.float32)
    return [float(step(Tensor(x))[0].asnumpy()) for _ in range(3)]


@pytest.mark.parametrize("transpose_b", [True, False])
@pytest.mark.parametrize("level", [None, "z1", "z3"])
def test_zero_and_weights_stored_the_other_way(dist_run, level, transpose_b):
    expected = dist_run(zero_worker, ranks=2, level=None, transpose_b=True, tensor=1)
    results = dist_run(zero_worker, ranks=4, level=level, transpose_b=transpose_b, tensor=2)
    for rank, losses in enumerate(results):
        np.testing.assert_allclose(losses, expected[rank // 2], rtol=1e-5)


# --- sequence parallelism with the batch first


class BatchFirst(nn.Cell):
    """Parts that a script puts together: embedding, feed-forward block, two linears, head."""

    def __init__(self, config):
        super().__init__()
        rng = np.random.default_rng(3)
        first, second = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 16), (16, 8)))
        self.embedding = Embedding(16, 32, 8, 0.0, config)
        self.mlp = ParallelMLP(config)
        self.mapping = ColumnParallelLinear(16, 8, config=config, init_method=first, bias=True)
        self.projection = RowParallelLinear(
            *(8, 16), config=config, init_method=second, bias=False, input_is_parallel=True
        )
        self.head = ParallelLMLogits(config)

    def construct(self, ids):
        x = self.embedding(ids, None)
        output, bias = self.mlp(x)
        x = x + output + bias
        x = x + self.projection(ops.tanh(self.mapping(x)[0]))[0]
        return x, self.head(x, self.embedding.word_embeddings.weight, parallel_output=False)


def batch_first_worker(scattered):
    ranks = comm.get_world_size()
    begin(tensor_model_parallel_size=ranks)
    set_rng_seed(5)
    parallel = ModelParallelConfig(tensor_model_parallel_size=ranks, sequence_parallel=ranks > 1)
    position = "rope" if scattered else "learned_absolute"  # a table is added before the cut
    sizes = {**tiny_models.SCRIPT, "init_method_std": 0.3, "position_embedding_type": position}
    net = BatchFirst(TransformerConfig(**sizes, parallel_config=parallel))
    ids = np.random.default_rng(0).integers(0, 32, (2, 8)).astype(np.int32)
    factors = Tensor(np.random.default_rng(1).normal(size=(2, 8, 32)).astype(np.float32))

    def forward():
        states, logits = net(Tensor(ids))
        return (logits * factors).sum(), states, logits

    weights = [net.mapping.weight, net.mlp.mapping.weight]
    (_, states, logits), grads = ops.value_and_grad(forward, None, weights, has_aux=True)()
    return states.asnumpy(), logits.asnumpy(), [grad.asnumpy() for grad in grads]


@pytest.mark.parametrize("scattered", [True, False])
def test_parts_cut_the_sequence_behind_the_batch(dist_run, scattered):
    ((states, logits, grads),) = dist_run(batch_first_worker, ranks=1, scattered=scattered)
    results = dist_run(batch_first_worker, ranks=2, scattered=scattered)
    joined = np.concatenate([found[0] for found in results], axis=1)
    np.testing.assert_allclose(joined, states, rtol=1e-4, atol=1e-5)
    for found in results:
        np.testing.assert_allclose(found[1], logits, rtol=1e-4, atol=1e-5)
    for place, whole in enumerate(grads):
        joined = np.concatenate([found[2][place] for found in results])
        np.testing.assert_allclose(joined, whole, rtol=1e-4, atol=1e-4)


# --- shared sequences


def softmax_attention(q, k, v, hidden):
    """[b, n, S, d] in numpy."""
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3])
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


AXES = {"BNSD": (0, 1, 2, 3), "BSND": (0, 2, 1, 3), "SBND": (2, 0, 1, 3)}


def in_layout(array, layout):
    """[b, n, S, d] -> a layout."""
    if layout in AXES:
        return np.ascontiguousarray(array.transpose(AXES[layout]))
    b, n, s, d = array.shape
    order = (2, 0, 1, 3) if layout == "SBH" else (0, 2, 1, 3)
    return np.ascontiguousarray(array.transpose(order)).reshape(
        (s, b, n * d) if layout == "SBH" else (b, s, n * d)
    )


def tensors_of_attention(shape=(2, 4, 16, 8), groups=2):
    rng = np.random.default_rng(0)
    b, n, s, d = shape
    q = rng.normal(size=shape).astype(np.float32)
    k, v = (rng.normal(size=(b, groups, s, d)).astype(np.float32) for _ in range(2))
    return q, k, v


def attention_worker(kind, layout, context, masked):
    begin(context_parallel_size=context)
    q, k, v = tensors_of_attention()
    hidden = np.random.default_rng(5).random((16, 16)) < 0.3
    hidden[:, 0] = False
    cell = {"ring": RingAttention, "flash": FlashSP}[kind](
        head_num=4, input_layout=layout, next_tokens=0 if not masked else 65535
    )
    mask = Tensor(hidden.astype(np.uint8))
    cut = get_sp_chuncks_general if masked else get_sp_chuncks
    options = {} if masked else {"enable_flash_sp": kind == "flash"}
    own = [cut(Tensor(in_layout(part, layout)), layout, **options) for part in (q, k, v)]
    own_mask = get_sp_chuncks_attn_mask_general(mask) if masked else None
    weights = cut(
        Tensor(in_layout(np.random.default_rng(9).normal(size=q.shape).astype(np.float32), layout)),
        layout,
        **options,
    )

    def loss(*inputs):
        out = cell(*inputs, own_mask)
        return (out * weights).sum(), out

    gradient = ops.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (_, out), grads = gradient(*own)
    whole_mask = hidden if masked else np.triu(np.ones((16, 16), bool), 1)
    expected = softmax_attention(q, *(np.repeat(part, 2, axis=1) for part in (k, v)), whole_mask)
    expected = cut(Tensor(in_layout(expected.astype(np.float32), layout)), layout, **options)
    np.testing.assert_allclose(out.asnumpy(), expected.asnumpy(), rtol=1e-4, atol=1e-5)
    return [grad.asnumpy() for grad in grads], [np.abs(grad.asnumpy()).sum() for grad in grads]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("kind", "layout"),
    [("ring", "SBH"), ("ring", "BNSD"), ("ring", "BSH"), ("flash", "BSH"), ("ring", "BSND")],
)
def test_attention_over_ranks(dist_run, kind, layout, masked):
    alone = dist_run(attention_worker, ranks=1, kind=kind, layout=layout, context=1, masked=masked)
    results = dist_run(
        attention_worker, ranks=4, kind=kind, layout=layout, context=4, masked=masked
    )
    for place in range(3):
        total = sum(sums[place] for _, sums in results)
        assert total == pytest.approx(alone[0][1][place], rel=1e-4)


class Whole(nn.Cell):
    """Causal attention of whole sequences [S, b, n, d] by MindSpore's own operators."""

    def construct(self, q, k, v):
        q, k, v = (part.transpose(1, 2, 0, 3) for part in (q, k, v))
        scores = ops.matmul(q, k.swapaxes(2, 3)) / float(np.sqrt(q.shape[3]))
        hidden = Tensor(np.triu(np.full((q.shape[2], q.shape[2]), -1e9, np.float32), 1))
        return ops.matmul(ops.softmax(scores + hidden), v).transpose(2, 0, 1, 3)


def ulysses_worker(hybrid):
    context = comm.get_world_size()
    set_global_args(
        ModelParallelConfig(
            context_parallel_size=context,
            context_parallel_algo="hybrid_cp_algo" if hybrid else "ulysses_cp_algo",
            ulysses_degree_in_cp=2 if hybrid else None,
        )
    )
    begin(context_parallel_size=context)
    q, k, v = tensors_of_attention(groups=4)
    expected = softmax_attention(q, k, v, np.triu(np.ones((16, 16), bool), 1))
    q, k, v, expected = (in_layout(part, "SBND") for part in (q, k, v, expected))
    batch = {
        name: part.transpose(1, 0, 2, 3)
        for name, part in (("q", q), ("k", k), ("v", v), ("out", expected))
    }
    own = get_batch_on_this_cp_rank(batch)
    q, k, v, expected = (np.ascontiguousarray(own[name].transpose(1, 0, 2, 3)) for name in batch)
    group = parallel_state.get_context_parallel_group()
    attention = Whole()
    if hybrid:
        group = parallel_state.get_context_parallel_group_for_hybrid_ulysses()
        attention = RingAttention(head_num=2, input_layout="SBND")
    cell = UlyssesContextAttention(attention, group)
    gradient = ops.value_and_grad(
        lambda *inputs: (cell(*inputs) * Tensor(expected)).sum(), (0, 1, 2)
    )
    inputs = [Tensor(part) for part in (q, k, v)]
    out = cell(*inputs).asnumpy()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    value, grads = gradient(*inputs)
    set_global_args(None)
    return float(value.asnumpy()), [float(np.abs(grad.asnumpy()).sum()) for grad in grads]


@pytest.mark.parametrize(("ranks", "hybrid"), [(2, False), (4, True)])
def test_heads_are_exchanged(dist_run, ranks, hybrid):
    ((whole, sums),) = dist_run(ulysses_worker, ranks=1, hybrid=False)
    results = dist_run(ulysses_worker, ranks=ranks, hybrid=hybrid)
    assert sum(value for value, _ in results) == pytest.approx(whole, rel=1e-5)
    for place in range(3):
        total = sum(found[place] for _, found in results)
        assert total == pytest.approx(sums[place], rel=1e-4)


# --- random streams


def drawn():
    """What dropout of the package's layers and MindSpore's generator begin with."""
    kept = package_ops.dropout(Tensor(np.ones(64, np.float32)), 0.5, get_rng_tracker().current())
    return kept.asnumpy().tolist(), ms.get_rng_state().asnumpy().tolist()


def random_worker():
    begin(tensor_model_parallel_size=2)
    set_rng_seed(7)
    found = {}
    for name in (DATA_PARALLEL_GENERATOR, TENSOR_PARALLEL_GENERATOR):
        with get_rng_tracer().rng_fork(name):
            found[name] = [drawn()[0], drawn()]
    outside = ms.get_rng_state().asnumpy().tolist()
    state = get_rng_tracer().get_state()
    with get_rng_tracer().rng_fork():
        first = drawn()
    get_rng_tracer().set_state(state)
    with get_rng_tracer().rng_fork():
        assert drawn() == first
        assert drawn() != first
    return found, outside, state["mindspore"][DATA_PARALLEL_GENERATOR].asnumpy().tolist()


def test_random_streams(dist_run):
    (one, outside, data_state), (other, _, _) = dist_run(random_worker, ranks=2)
    assert one[DATA_PARALLEL_GENERATOR] == other[DATA_PARALLEL_GENERATOR]
    for mine, theirs in zip(
        one[TENSOR_PARALLEL_GENERATOR], other[TENSOR_PARALLEL_GENERATOR], strict=True
    ):
        assert mine != theirs
    assert one[TENSOR_PARALLEL_GENERATOR][1][1] != other[TENSOR_PARALLEL_GENERATOR][1][1]
    assert one[DATA_PARALLEL_GENERATOR][0] != one[DATA_PARALLEL_GENERATOR][1][0]
    assert outside == data_state  # the forks have left no trace in MindSpore's generator


# --- experts


def dispatch_worker():
    ranks = comm.get_world_size()
    begin(expert_model_parallel_size=ranks)
    rank = comm.get_rank()
    parallel = ModelParallelConfig(expert_model_parallel_size=ranks)
    config = TransformerConfig(
        vocab_size=8,
        num_layers=1,
        num_attention_heads=1,
        hidden_size=4,
        seq_length=4,
        parallel_config=parallel,
        moe_config=MoEConfig(num_experts=4),
    )
    local = [rank * 4 // ranks + i for i in range(4 // ranks)]
    dispatcher = MoEAlltoAllTokenDispatcher(len(local), local, config)
    rng = np.random.default_rng(rank)
    hidden = rng.normal(size=(3, 2, 4)).astype(np.float32)
    indices = np.stack([rng.permutation(4)[:2] for _ in range(6)]).astype(np.int32)
    probs = rng.random((6, 2)).astype(np.float32)
    moved, counts = dispatcher.token_permutation(Tensor(hidden), Tensor(probs), Tensor(indices))
    counts = counts.asnumpy()
    scale = np.concatenate([np.full(c, e + 1.0) for e, c in zip(local, counts, strict=True)])
    back, bias = dispatcher.token_unpermutation(moved * Tensor(scale[:, None].astype(np.float32)))
    expected = hidden.reshape(6, 4) * (probs * (indices + 1)).sum(1, keepdims=True)
    np.testing.assert_allclose(back.asnumpy(), expected.reshape(3, 2, 4), rtol=1e-5)
    assert bias is None
    return int(counts.sum())


def test_the_dispatcher_takes_probabilities_and_indices(dist_run):
    assert sum(dist_run(dispatch_worker, ranks=2)) == 24
