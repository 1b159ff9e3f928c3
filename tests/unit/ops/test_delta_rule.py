# SPDX-License-Identifier: Apache-2.0
"""Linear attention with a gated delta rule against float64 and finite differences."""

import numpy as np
import ops_reference as ref
import pytest
from ops_reference import kernel_set  # noqa: F401 - an autouse fixture

from mindspeed_ms import ops

RNG = np.random.RandomState(11)


def recurrence(q, k, v, a, b, log_rate, dt_bias):
    length, batch, heads, _ = v.shape
    repeat = heads // q.shape[2]
    q, k = ((x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)).repeat(repeat, 2) for x in (q, k))
    state = np.zeros((batch, heads, q.shape[-1], v.shape[-1]))
    out = np.zeros(v.shape)
    for t in range(length):
        decay = np.exp(-np.exp(log_rate) * np.logaddexp(a[t] + dt_bias, 0))
        state = state * decay[..., None, None]
        read = np.einsum("bhcd,bhc->bhd", state, k[t])
        learnt = ref.sigmoid(b[t])[..., None] * (v[t] - read)
        state = state + np.einsum("bhc,bhd->bhcd", k[t], learnt)
        out[t] = np.einsum("bhcd,bhc->bhd", state, q[t]) / np.sqrt(q.shape[-1])
    return out


def convolution(x, weight):
    taps = weight.shape[2]
    padded = np.concatenate([np.zeros((taps - 1, *x.shape[1:])), x])
    z = sum(padded[j : j + len(x)] * weight[:, 0, j] for j in range(taps))
    return z * ref.sigmoid(z)


def check(op, reference, arrays, tolerance):
    arrays = [ref.values(ref.tensor(a)) for a in arrays]
    dy = ref.values(ref.tensor(RNG.randn(*reference(*arrays).shape)))
    y, grads = ref.run(op, arrays, dy)
    ref.assert_close(y, reference(*arrays), tolerance, "y")
    for got, wanted in zip(grads, ref.numeric_grads(reference, arrays, dy), strict=True):
        ref.assert_close(got, wanted, tolerance * 5, "gradient")


def heads(length, keys, values):
    shapes = [(keys, 3), (keys, 3), (values, 4)]
    tensors = [RNG.randn(length, 2, *shape) for shape in shapes]
    factors = [RNG.randn(length, 2, values) for _ in range(2)]
    return [*tensors, *factors, RNG.randn(values) * 0.3, RNG.randn(values)]


@pytest.mark.parametrize(("length", "keys", "values"), [(1, 1, 1), (5, 1, 2), (37, 2, 2)])
def test_states_match_float64(length, keys, values):
    check(ops.gated_delta_rule, recurrence, heads(length, keys, values), 1e-5)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_causal_convolution_matches_float64(length):
    check(ops.causal_conv_silu, convolution, [RNG.randn(length, 2, 5), RNG.randn(5, 1, 4)], 1e-5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="taps"):
        ops.causal_conv_silu(ref.tensor(np.ones((3, 1, 4))), ref.tensor(np.ones((5, 1, 2))))
    given = [ref.tensor(array) for array in heads(2, 2, 3)]
    with pytest.raises(ValueError, match="multiple"):
        ops.gated_delta_rule(*given)
