# SPDX-License-Identifier: Apache-2.0
"""The tape, and the facts about MindSpore that the package builds on."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ops

from mindspeed_ms.backend import autograd, memory


class Square(autograd.Function):
    """y = x^2."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * grad * x


@pytest.fixture(autouse=True)
def _on_the_tape():
    with autograd.recording():
        yield


def _leaf(*values):
    return autograd.requires_grad_(memory.from_numpy(np.array(values, np.float32)))


def test_backward_accumulates_into_leaves():
    x = _leaf(1.0, 2.0)
    autograd.backward(Square.apply(x), memory.from_numpy(np.array([1.0, 10.0], np.float32)))
    np.testing.assert_array_equal(autograd.get_grad(x).asnumpy(), [2, 40])
    autograd.set_grad(x, None)
    autograd.backward([Square.apply(x), x * 3.0])
    np.testing.assert_array_equal(autograd.get_grad(x).asnumpy(), [5, 7])


def test_graphs_of_several_micro_batches_are_independent():
    x = _leaf(3.0)
    outputs = [Square.apply(x * float(k)) for k in range(1, 4)]
    for k in (2, 1, 3):
        autograd.set_grad(x, None)
        autograd.backward(outputs[k - 1])
        np.testing.assert_array_equal(autograd.get_grad(x).asnumpy(), [6.0 * k * k])


def test_a_graph_is_used_once_unless_kept():
    x = _leaf(1.0)
    y = Square.apply(x)
    autograd.backward(y, keep_graph=True)
    autograd.backward(y)
    with pytest.raises(RuntimeError):
        autograd.backward(y)


def test_nothing_is_recorded_without_grad():
    x = _leaf(1.0)
    with autograd.no_grad():
        assert not autograd.is_grad_enabled()
        assert not autograd.requires_grad(Square.apply(x))
        with autograd.enable_grad():
            assert autograd.requires_grad(Square.apply(x))
    assert autograd.is_grad_enabled() and autograd.requires_grad(Square.apply(x))
    assert not autograd.requires_grad(Square.apply(autograd.detach(x)))
    assert memory.address(autograd.detach(x)) == memory.address(x)


def test_gradients_are_taken_in_backward_order():
    first, last = (Parameter(np.ones((2, 2), np.float32), name=name) for name in ("a", "b"))
    seen = []
    handles = [
        autograd.take_gradients(
            param, lambda grad, name=param.name: seen.append((name, grad.asnumpy().copy()))
        )
        for param in (first, last)
    ]
    x = memory.from_numpy(np.ones((1, 2), np.float32))
    autograd.backward(ops.matmul(ops.matmul(x, first), last))
    assert [name for name, _ in seen] == ["b", "a"]
    assert autograd.get_grad(first) is None and autograd.get_grad(last) is None
    handles[0].remove()
    autograd.backward(ops.matmul(ops.matmul(x, first), last))
    assert [name for name, _ in seen] == ["b", "a", "b"]
    np.testing.assert_array_equal(seen[2][1], seen[0][1])


def test_hooks_survive_moving_a_parameter_into_a_buffer():
    param = Parameter(np.ones((2,), np.float32), name="p")
    calls = []
    autograd.take_gradients(param, lambda grad: calls.append(param.name))
    memory.set_data(param, memory.view_of(memory.zeros((8,)), 3, (2,)))
    autograd.backward(Square.apply(param))
    assert calls == ["p"]


def test_requires_grad_of_parameters():
    param = Parameter(np.ones((2,), np.float32), name="p")
    assert autograd.requires_grad(param)
    assert autograd.requires_grad_(param, False) is param
    assert not autograd.requires_grad(param)


def test_recording_survives_a_failing_primitive():
    x = _leaf(1.0)
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        ops.matmul(x, ms.Tensor(np.ones((3, 3), np.float32)))
    with autograd.recording():
        assert autograd.requires_grad(Square.apply(x))


def test_the_tape_is_off_outside_of_recording_and_before_it():
    autograd._pynative_executor.set_grad_flag(False)
    x = _leaf(1.0)
    assert not autograd.requires_grad(Square.apply(x))
    with autograd.recording():
        assert autograd.is_grad_enabled()
        y = Square.apply(x)
    assert not autograd.is_grad_enabled()
    autograd.backward(y)
    assert autograd.get_grad(x).asnumpy() == 2.0
    assert not autograd.is_grad_enabled()
    with pytest.raises(KeyError), autograd.recording():
        raise KeyError("inside")
    assert not autograd.is_grad_enabled()


def test_recording_works_in_graph_mode_and_leaves_it():
    x = _leaf(3.0)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        with autograd.recording():
            y = Square.apply(x)
        autograd.backward(y)
        assert ms.get_context("mode") == ms.GRAPH_MODE
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    assert autograd.get_grad(x).asnumpy() == 6.0


def test_needs_input_grad_says_which_inputs_take_a_gradient():
    seen = []

    class Scaled(autograd.Function):
        @staticmethod
        def forward(ctx, x, factor, y):
            seen.append(ctx.needs_input_grad)
            return x * factor + y

        @staticmethod
        def backward(ctx, grad):
            seen.append(ctx.needs_input_grad)
            return grad, None, None

    x, constant = _leaf(1.0), memory.from_numpy(np.ones(1, np.float32))
    autograd.backward(Scaled.apply(x, 2.0, constant))
    assert seen == [(True, False, False)] * 2


def test_errors_in_backward_keep_their_type():
    class Failing(autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + 1.0

        @staticmethod
        def backward(ctx, grad):
            raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        autograd.backward(Failing.apply(_leaf(1.0)))
    autograd.backward(Square.apply(_leaf(1.0)))
