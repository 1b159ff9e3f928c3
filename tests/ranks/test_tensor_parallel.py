# SPDX-License-Identifier: Apache-2.0
"""Split layers against the unsharded computation in numpy: outputs and all gradients."""

import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.config import ModelParallelConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import GradSink
from mindspeed_ms.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    mappings,
    vocab_parallel_cross_entropy,
)

pytestmark = pytest.mark.ranks
SEQ, BATCH, INPUTS, OUTPUTS, VOCAB = 8, 3, 12, 16, 24
# Sums of up to 24 fp32 products in another order than numpy's.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def _array(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _tensor(array):
    return memory.from_numpy(np.ascontiguousarray(array))


def _config(sequence_parallel, fused=False):
    return ModelParallelConfig(
        tensor_model_parallel_size=comm.get_world_size(),
        sequence_parallel=sequence_parallel,
        gradient_accumulation_fusion=fused,
    )


def _start():
    comm.init_process_group()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=comm.get_world_size())
    return parallel_state.get_tensor_model_parallel_group()


def _part(array, group, dim):
    return np.split(array, group.size, axis=dim)[group.rank]


def _grad(param):
    return memory.contiguous(autograd.get_grad(param)).asnumpy().copy()


def _run(layer, x, dy):
    x = autograd.requires_grad_(x)
    y, bias = layer(x)
    autograd.backward(y, dy)
    return y, bias, autograd.get_grad(x)


def column_worker(sequence_parallel, fused):
    group = _start()
    weight = _array(1, OUTPUTS, INPUTS)
    layer = ColumnParallelLinear(
        INPUTS,
        OUTPUTS,
        config=_config(sequence_parallel, fused),
        init_method=lambda shape: weight,
        bias_init=lambda shape: _array(2, *shape),
    )
    main_grad = memory.zeros(layer.weight.shape)
    ready = []
    if fused:
        layer.weight.grad_sink = GradSink(main_grad=main_grad, mark_ready=lambda: ready.append(1))
    x, dy = _array(3, SEQ, BATCH, INPUTS), _array(4, SEQ, BATCH, OUTPUTS)
    local_x = _part(x, group, 0) if sequence_parallel else x
    y, _, dx = _run(layer, _tensor(local_x), _tensor(_part(dy, group, 2)))
    if fused:
        assert autograd.get_grad(layer.weight) is None and ready == [1]
    return {
        "y": y.asnumpy(),
        "dx": dx.asnumpy(),
        "dw": main_grad.asnumpy() if fused else _grad(layer.weight),
        "db": _grad(layer.bias),
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_column_linear_matches_dense(dist_run, ranks, sequence_parallel, fused):
    results = dist_run(column_worker, ranks=ranks, sequence_parallel=sequence_parallel, fused=fused)
    weight, bias = _array(1, OUTPUTS, INPUTS), _array(2, OUTPUTS)
    x, dy = _array(3, SEQ, BATCH, INPUTS), _array(4, SEQ, BATCH, OUTPUTS)
    np.testing.assert_allclose(
        np.concatenate([r["y"] for r in results], axis=2), x @ weight.T + bias, **TOLERANCE
    )
    dx = dy @ weight
    for rank, result in enumerate(results):
        expected = np.split(dx, ranks)[rank] if sequence_parallel and ranks > 1 else dx
        np.testing.assert_allclose(result["dx"], expected, **TOLERANCE)
    dw = np.einsum("sbo,sbi->oi", dy, x)
    np.testing.assert_allclose(np.concatenate([r["dw"] for r in results]), dw, **TOLERANCE)
    np.testing.assert_allclose(
        np.concatenate([r["db"] for r in results]), dy.sum((0, 1)), **TOLERANCE
    )


def row_worker(sequence_parallel, skip_bias_add):
    group = _start()
    weight = _array(1, OUTPUTS, INPUTS)
    layer = RowParallelLinear(
        INPUTS,
        OUTPUTS,
        config=_config(sequence_parallel),
        init_method=lambda shape: weight,
        bias=True,
        bias_init=lambda shape: _array(2, *shape),
        input_is_parallel=True,
        skip_bias_add=skip_bias_add,
    )
    x, dy = _array(3, SEQ, BATCH, INPUTS), _array(4, SEQ, BATCH, OUTPUTS)
    local_dy = _part(dy, group, 0) if sequence_parallel else dy
    y, bias, dx = _run(layer, _tensor(_part(x, group, 2)), _tensor(local_dy))
    return {
        "y": y.asnumpy() + (bias.asnumpy() if skip_bias_add else 0.0),
        "dx": dx.asnumpy(),
        "dw": _grad(layer.weight),
        "partial_bias": layer.bias.shard.partial_gradient,
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("skip_bias_add", [False, True])
def test_row_linear_matches_dense(dist_run, ranks, sequence_parallel, skip_bias_add):
    results = dist_run(
        row_worker, ranks=ranks, sequence_parallel=sequence_parallel, skip_bias_add=skip_bias_add
    )
    weight, bias = _array(1, OUTPUTS, INPUTS), _array(2, OUTPUTS)
    x, dy = _array(3, SEQ, BATCH, INPUTS), _array(4, SEQ, BATCH, OUTPUTS)
    y = x @ weight.T + bias
    for rank, result in enumerate(results):
        split = sequence_parallel and ranks > 1
        expected = np.split(y, ranks)[rank] if split else y
        np.testing.assert_allclose(result["y"], expected, **TOLERANCE)
        assert result["partial_bias"] == split
    np.testing.assert_allclose(
        np.concatenate([r["dx"] for r in results], axis=2), dy @ weight, **TOLERANCE
    )
    dw = np.einsum("sbo,sbi->oi", dy, x)
    np.testing.assert_allclose(np.concatenate([r["dw"] for r in results], axis=1), dw, **TOLERANCE)


def embedding_worker(scatter, fused):
    group = _start()
    table = _array(5, VOCAB, INPUTS)
    layer = VocabParallelEmbedding(
        VOCAB,
        INPUTS,
        init_method=lambda shape: table,
        reduce_scatter_embeddings=scatter,
        config=_config(scatter, fused),
    )
    main_grad = memory.zeros(layer.weight.shape)
    if fused:
        layer.weight.grad_sink = GradSink(main_grad=main_grad, mark_ready=lambda: None)
    ids = np.random.default_rng(6).integers(0, VOCAB, (BATCH, SEQ)).astype(np.int32)
    y = layer(_tensor(ids))
    dy = _array(7, SEQ, BATCH, INPUTS)
    local = _part(dy, group, 0) if scatter else dy.transpose(1, 0, 2)
    autograd.backward(y, _tensor(local))
    return {"y": y.asnumpy(), "dw": main_grad.asnumpy() if fused else _grad(layer.weight)}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_embedding_matches_lookup(dist_run, ranks, scatter, fused):
    results = dist_run(embedding_worker, ranks=ranks, scatter=scatter, fused=fused)
    table, dy = _array(5, VOCAB, INPUTS), _array(7, SEQ, BATCH, INPUTS)
    ids = np.random.default_rng(6).integers(0, VOCAB, (BATCH, SEQ))
    rows = table[ids]
    for rank, result in enumerate(results):
        expected = np.split(rows.transpose(1, 0, 2), ranks)[rank] if scatter else rows
        np.testing.assert_array_equal(result["y"], expected)
    dw = np.zeros_like(table)
    np.add.at(dw, ids.T, dy)
    np.testing.assert_allclose(np.concatenate([r["dw"] for r in results]), dw, **TOLERANCE)


def cross_entropy_worker(smoothing):
    group = _start()
    logits = autograd.requires_grad_(_tensor(_part(10 * _array(8, SEQ, BATCH, VOCAB), group, 2)))
    target = np.random.default_rng(9).integers(0, VOCAB, (SEQ, BATCH)).astype(np.int32)
    loss = vocab_parallel_cross_entropy(logits, _tensor(target), smoothing)
    autograd.backward(loss, _tensor(_array(10, SEQ, BATCH)))
    return {"loss": loss.asnumpy(), "dlogits": autograd.get_grad(logits).asnumpy()}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_matches_dense(dist_run, ranks, smoothing):
    results = dist_run(cross_entropy_worker, ranks=ranks, smoothing=smoothing)
    logits = 10 * _array(8, SEQ, BATCH, VOCAB).astype(np.float64)
    target = np.random.default_rng(9).integers(0, VOCAB, (SEQ, BATCH))
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    spread = smoothing * VOCAB / (VOCAB - 1)
    onehot = np.eye(VOCAB)[target]
    goal = (1 - spread) * onehot + spread / VOCAB
    loss = -(goal * log_probs).sum(-1)
    dlogits = (np.exp(log_probs) - goal) * _array(10, SEQ, BATCH)[..., None]
    for result in results:
        np.testing.assert_allclose(result["loss"], loss, rtol=1e-5, atol=1e-5)
    joined = np.concatenate([r["dlogits"] for r in results], axis=2)
    np.testing.assert_allclose(joined, dlogits, rtol=1e-5, atol=1e-6)


def mappings_worker():
    """Every crossing is the adjoint of its backward: <f(x), y> == <x, f*(y)> summed over ranks."""
    group = _start()
    crossings = {
        "copy": (mappings.copy_to_tensor_model_parallel_region, (SEQ, 4), (SEQ, 4)),
        "reduce": (mappings.reduce_from_tensor_model_parallel_region, (SEQ, 4), (SEQ, 4)),
        "scatter": (
            mappings.scatter_to_tensor_model_parallel_region,
            (SEQ, 4),
            (SEQ, 4 // group.size),
        ),
        "gather": (
            mappings.gather_from_tensor_model_parallel_region,
            (SEQ, 4),
            (SEQ, 4 * group.size),
        ),
        "scatter_seq": (
            mappings.scatter_to_sequence_parallel_region,
            (SEQ, 4),
            (SEQ // group.size, 4),
        ),
        "gather_seq": (
            mappings.gather_from_sequence_parallel_region,
            (SEQ, 4),
            (SEQ * group.size, 4),
        ),
        "reduce_scatter": (
            mappings.reduce_scatter_to_sequence_parallel_region,
            (SEQ, 4),
            (SEQ // group.size, 4),
        ),
    }
    replicated_output = {"reduce"}
    replicated_input = {"copy", "scatter", "scatter_seq"}
    replicated_grad = {"gather"}
    result = {}
    for number, (name, (crossing, shape_in, shape_out)) in enumerate(crossings.items()):
        own = 100 * number + group.rank
        x = _array(100 * number if name in replicated_input else own, *shape_in)
        dy_seed = 7000 + 100 * number
        shared_dy = name in replicated_output or name in replicated_grad
        dy = _array(dy_seed if shared_dy else dy_seed + group.rank, *shape_out)
        leaf = autograd.requires_grad_(_tensor(x))
        y = crossing(leaf)
        assert tuple(y.shape) == shape_out, name
        autograd.backward(y, _tensor(dy))
        result[f"{name}_x"], result[f"{name}_dy"] = x, dy
        result[f"{name}_y"] = y.asnumpy()
        result[f"{name}_dx"] = memory.contiguous(autograd.get_grad(leaf)).asnumpy().copy()
    return result


@pytest.mark.parametrize("ranks", [2, 4])
def test_region_crossings_match_their_definition(dist_run, ranks):
    results = dist_run(mappings_worker, ranks=ranks)

    def all_of(key):
        return [r[key] for r in results]

    total = sum(all_of("reduce_x"))
    joined_dy = {
        name: np.concatenate(all_of(f"{name}_dy")) for name in ("scatter_seq", "reduce_scatter")
    }
    for rank, r in enumerate(results):
        close = lambda key, expected, r=r: np.testing.assert_allclose(r[key], expected, **TOLERANCE)  # noqa: E731
        close("copy_y", r["copy_x"])
        close("copy_dx", sum(all_of("copy_dy")))
        close("reduce_y", total)
        close("reduce_dx", r["reduce_dy"])
        close("scatter_y", np.split(r["scatter_x"], ranks, axis=1)[rank])
        close("scatter_dx", np.concatenate(all_of("scatter_dy"), axis=1))
        close("gather_y", np.concatenate(all_of("gather_x"), axis=1))
        close("gather_dx", np.split(r["gather_dy"], ranks, axis=1)[rank])
        close("scatter_seq_y", np.split(r["scatter_seq_x"], ranks)[rank])
        close("scatter_seq_dx", joined_dy["scatter_seq"])
        close("gather_seq_y", np.concatenate(all_of("gather_seq_x")))
        close("gather_seq_dx", np.split(sum(all_of("gather_seq_dy")), ranks)[rank])
        close("reduce_scatter_y", np.split(sum(all_of("reduce_scatter_x")), ranks)[rank])
        close("reduce_scatter_dx", joined_dy["reduce_scatter"])


def in_flight_worker():
    """Gradients with all forwards before all backwards equal gradients one by one."""
    _start()
    grads = {}
    for order in ("alternating", "together"):
        layer = ColumnParallelLinear(
            INPUTS,
            OUTPUTS,
            config=_config(True),
            init_method=lambda shape: _array(1, *shape),
        )
        total = np.zeros(layer.weight.shape, np.float32)
        handle = autograd.take_gradients(
            layer.weight,
            lambda grad, total=total: np.add(total, memory.contiguous(grad).asnumpy(), out=total),
        )
        outputs = []
        for step in range(3):
            y, _ = layer(_tensor(_array(20 + step, SEQ // comm.get_world_size(), BATCH, INPUTS)))
            outputs.append(y)
            if order == "alternating":
                autograd.backward(outputs.pop(), ms.ops.ones_like(y))
        for y in outputs:
            autograd.backward(y, ms.ops.ones_like(y))
        handle.remove()
        grads[order] = total
    return grads


@pytest.mark.parametrize("ranks", [2])
def test_several_micro_batches_in_flight(dist_run, ranks):
    for result in dist_run(in_flight_worker, ranks=ranks):
        np.testing.assert_array_equal(result["alternating"], result["together"])


def refusal_worker():
    _start()
    config = _config(False)
    messages = {}
    cases = {
        "output": lambda: ColumnParallelLinear(4, 5, config=config, init_method="zeros"),
        "input": lambda: RowParallelLinear(
            5, 4, config=config, init_method="zeros", bias=False, input_is_parallel=True
        ),
        "vocab": lambda: VocabParallelEmbedding(5, 4, init_method="zeros", config=config),
        "gather": lambda: ColumnParallelLinear(
            4, 4, config=_config(True), init_method="zeros", gather_output=True
        ),
        "not_parallel": lambda: RowParallelLinear(
            4, 4, config=_config(True), init_method="zeros", bias=False, input_is_parallel=False
        ),
        "master": lambda: ColumnParallelLinear(
            4, 4, config=config, init_method="zeros", keep_master_weight_for_test=True
        ),
        "buffer": lambda: ColumnParallelLinear(
            4, 4, config=config, init_method="zeros", grad_output_buffer=[]
        ),
        "name": lambda: ColumnParallelLinear(
            4, 4, config=config, init_method="zeros", tp_comm_buffer_name="qkv"
        ),
        "smoothing": lambda: vocab_parallel_cross_entropy(
            _tensor(_array(1, 2, 4)), _tensor(np.zeros(2, np.int32)), 1.0
        ),
        "target": lambda: vocab_parallel_cross_entropy(
            _tensor(_array(1, 2, 4)), _tensor(np.zeros(3, np.int32))
        ),
    }
    for name, case in cases.items():
        try:
            case()
        except ValueError as error:
            messages[name] = str(error)
    return messages


@pytest.mark.parametrize("ranks", [2])
def test_wrong_sizes_and_arguments_are_refused(dist_run, ranks):
    expected = {
        "output": "output_size is 5",
        "input": "input_size is 5",
        "vocab": "vocabulary size is 5",
        "gather": "gather_output is True",
        "not_parallel": "input_is_parallel is False",
        "master": "keep_master_weight_for_test",
        "buffer": "grad_output_buffer",
        "name": "tp_comm_buffer_name",
        "smoothing": "label_smoothing is 1.0",
        "target": "targets must have the shape",
    }
    for messages in dist_run(refusal_worker, ranks=ranks):
        assert set(messages) == set(expected)
        for name, part in expected.items():
            assert part in messages[name]
