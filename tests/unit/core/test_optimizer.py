# SPDX-License-Identifier: Apache-2.0
"""Update rules and the optimizer step, on one rank, against numpy."""

import mindspore as ms
import numpy as np
import pytest
import tiny_training as tiny

from mindspeed_ms.backend import memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.optimizer import ConstantGradScaler, MegatronOptimizer
from mindspeed_ms.core.optimizer.clip_grads import clip_coefficient
from mindspeed_ms.core.optimizer.param_groups import get_param_groups
from mindspeed_ms.core.optimizer.update_rules import AdamW, Hyper, Sgd
from mindspeed_ms.core.parameter import named_parameters


def _tensors(count, size=7):
    return [memory.from_numpy(tiny.array(seed, size, scale=1.0)) for seed in range(count)]


def _values(tensor):
    return memory.as_numpy(tensor).astype(np.float64)


@pytest.fixture
def groups():
    """A model needs process groups; one rank has trivial ones."""
    parallel_state.destroy_model_parallel()
    tiny.start()
    yield
    parallel_state.destroy_model_parallel()


@pytest.mark.parametrize("decoupled", [True, False])
def test_adam(decoupled):
    main, grad, first, second = _tensors(4)
    memory.as_numpy(second)[...] = np.abs(memory.as_numpy(second))
    w, g, m, v = (_values(t).copy() for t in (main, grad, first, second))
    rule = AdamW((0.9, 0.95), 1e-8, decoupled)
    rule.apply(main, grad, {"exp_avg": first, "exp_avg_sq": second}, Hyper(0.1, 0.2, 3, 0.5))
    g = g * 0.5
    if decoupled:
        w *= 1 - 0.1 * 0.2
    else:
        g = g + 0.2 * w
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    w -= 0.1 * (m / (1 - 0.9**3)) / (np.sqrt(v / (1 - 0.95**3)) + 1e-8)
    np.testing.assert_allclose(_values(main), w, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(_values(first), m, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(_values(second), v, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum):
    main, grad, velocity = _tensors(3)
    w, g, v = (_values(t).copy() for t in (main, grad, velocity))
    Sgd(momentum).apply(main, grad, {"momentum_buffer": velocity}, Hyper(0.1, 0.2, 1, 0.5))
    v = momentum * v + 0.5 * g + 0.2 * w
    np.testing.assert_allclose(_values(main), w - 0.1 * v, rtol=1e-6, atol=1e-6)
    assert Sgd(momentum).state_names == (("momentum_buffer",) if momentum else ())


def test_clipping_only_shrinks():
    assert clip_coefficient(0.5, 1.0) == 1.0
    assert clip_coefficient(4.0, 1.0) == pytest.approx(0.25, rel=1e-6)
    assert clip_coefficient(float("nan"), 1.0) == 1.0


def test_segments_follow_groups_and_pieces_cover_everything(groups):
    wrapped, rule = tiny.build()
    (state,) = rule._states
    total = sum(p.size for _, p in named_parameters(wrapped.module))
    assert sum(part.main_param.size for part in rule.state_parts()) == total
    assert sum(segment.size for segment in state._segments) == total
    kinds = [segment.group for segment in state._segments]
    assert all(one is not two for one, two in zip(kinds[:-1], kinds[1:], strict=True))
    assert type(rule) is MegatronOptimizer


def test_fp32_parameters_are_their_own_main_parameters(groups):
    wrapped, rule = tiny.build()
    for part in rule.state_parts():
        assert memory.address(part.main_param) == memory.address(part.param)
    assert rule.num_bytes() == 2 * wrapped.num_bytes()["parameters"]


def test_16_bit_parameters_have_fp32_copies_that_can_be_refreshed(groups):
    wrapped, rule = tiny.build(dtype="bfloat16")
    part = next(part for part in rule.state_parts() if part.name == "embedding.weight")
    assert part.main_param.dtype == ms.float32 and part.param.dtype == ms.bfloat16
    memory.as_numpy(part.param)[...] = 0x3F80  # 1.0
    assert not np.all(memory.as_numpy(part.main_param) == 1.0)
    rule.refresh_main_params()
    np.testing.assert_array_equal(memory.as_numpy(part.main_param), 1.0)
    assert rule.num_bytes() == 3 * 2 * wrapped.num_bytes()["parameters"]


def test_the_loss_scale_does_not_change_the_update(groups):
    plain, plain_rule = tiny.build()
    scaled, scaled_rule = tiny.build(scaler=ConstantGradScaler(1024.0))
    first = tiny.train(plain, plain_rule, steps=2)
    second = tiny.train(scaled, scaled_rule, steps=2)
    np.testing.assert_allclose(second["norm"], first["norm"], rtol=1e-6)
    for name, value in tiny.weights(plain).items():
        np.testing.assert_allclose(tiny.weights(scaled)[name], value, rtol=1e-6, atol=1e-7)


def test_norms_and_zeros_match_numpy(groups):
    wrapped, rule = tiny.build({"zero_level": "z1"}, tied=False)
    wrapped.zero_grad_buffer()
    tiny.forward_backward(wrapped, 0, 2)
    wrapped.finish_grad_sync()
    grads = [param.main_grad.asnumpy() for _, param in named_parameters(wrapped.module)]
    norm = np.sqrt(sum(np.sum(np.square(grad, dtype=np.float64)) for grad in grads))
    zeros = sum(int(np.sum(grad == 0)) for grad in grads)
    assert zeros > 0, "rows of tokens that do not occur"
    params = [param.asnumpy() for _, param in named_parameters(wrapped.module)]
    params_norm = np.sqrt(sum(np.sum(np.square(p, dtype=np.float64)) for p in params))
    assert rule.params_norm() == pytest.approx(params_norm, rel=1e-6)
    rule.set_schedule(0.1, 0.0, None)
    result = rule.step()
    assert result.grad_norm == pytest.approx(norm, rel=1e-6)
    assert result.num_zeros_in_grad == zeros


def test_the_norm_is_measured_without_clipping_too(groups):
    free = tiny.train(*tiny.build(optimizer={"clip_grad": 0.0}), steps=1)["norm"]
    clipped = tiny.train(*tiny.build(optimizer={"clip_grad": 0.01}), steps=1)["norm"]
    assert free == clipped and free[0] > 0.01


def test_rates_and_decay_per_group(groups):
    wrapped, rule = tiny.build(optimizer={"decoupled_lr": 0.5, "no_weight_decay_params": ("up",)})
    rule.set_schedule(0.1, 0.2, 0.5)
    found = {
        name: (group.lr, group.weight_decay)
        for group in rule.param_groups
        for name, _ in group.parameters
    }
    assert found["embedding.weight"] == (0.5, 0.2)
    assert found["blocks.0.up.weight"] == (0.1, 0.0)
    assert found["blocks.0.down.weight"] == (0.1, 0.2)
    assert len(rule.parameters()) == len(named_parameters(wrapped.module))


def test_default_groups_spare_biases_and_vectors(groups):
    wrapped, _ = tiny.build()
    plain, spared = get_param_groups(named_parameters(wrapped.module))
    assert plain.wd_mult == 1.0 and spared.wd_mult == 0.0
    assert all(param.ndim == 1 for _, param in spared.parameters)
    assert all(param.ndim == 2 for _, param in plain.parameters)
