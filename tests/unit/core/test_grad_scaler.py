# SPDX-License-Identifier: Apache-2.0
"""Loss scales follow Megatron's rules."""

import pytest

from mindspeed_ms.config import TrainingConfig
from mindspeed_ms.core.optimizer import ConstantGradScaler, DynamicGradScaler, get_grad_scaler
from mindspeed_ms.core.optimizer.grad_scaler import ScalePolicy


def _scaler(**policy):
    return DynamicGradScaler(ScalePolicy(**{"initial_scale": 16.0, "growth_interval": 3, **policy}))


def _scales(scaler, steps):
    found = []
    for step in steps:
        scaler.update(step == "x")
        found.append(scaler.scale)
    return found


def test_hysteresis_tolerates_overflows_before_backoff():
    assert _scales(_scaler(hysteresis=2), "xxx") == [16.0, 8.0, 4.0]
    assert _scales(_scaler(hysteresis=3), "xxx") == [16.0, 16.0, 8.0]


def test_hysteresis_is_refilled_by_growth_only():
    # Two overflows use it up; a backoff does not refill it, so the next overflow halves at once.
    assert _scales(_scaler(), "xx.x") == [16.0, 8.0, 8.0, 4.0]
    assert _scales(_scaler(), "xx...x") == [16.0, 8.0, 8.0, 8.0, 16.0, 16.0]


def test_growth_needs_clean_steps_in_a_row():
    assert _scales(_scaler(), "..x...") == [16.0, 16.0, 16.0, 16.0, 16.0, 32.0]


def test_the_scale_has_a_minimum():
    assert _scales(_scaler(hysteresis=1, min_scale=8.0), "xxx") == [8.0, 8.0, 8.0]


def test_state_continues_elsewhere():
    scaler, other = _scaler(), _scaler()
    _scales(scaler, "xx..")
    other.load_state_dict(scaler.state_dict())
    assert scaler.state_dict() == {"scale": 8.0, "growth_tracker": 2, "hysteresis_tracker": 0}
    assert _scales(scaler, ".x") == _scales(other, ".x") == [16.0, 16.0]


def test_a_constant_scale_never_moves():
    scaler = ConstantGradScaler(128.0)
    scaler.update(True)
    scaler.load_state_dict(scaler.state_dict())
    assert scaler.scale == 128.0
    with pytest.raises(ValueError, match="loss scale is 0"):
        ConstantGradScaler(0)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"min_scale": 32.0}, "starts at 16.0 with minimum 32.0"),
        ({"growth_factor": 1.0}, "grows by 1.0"),
        ({"backoff_factor": 1.0}, "shrinks by 1.0"),
        ({"growth_interval": 0}, "loss_scale_window is 0"),
        ({"hysteresis": 0}, "hysteresis 0"),
    ],
)
def test_policies_without_bounds_are_refused(policy, text):
    with pytest.raises(ValueError, match=text):
        _scaler(**policy)


def test_the_configuration_chooses():
    assert get_grad_scaler(TrainingConfig()) is None
    assert get_grad_scaler(TrainingConfig(bf16=True)) is None
    assert get_grad_scaler(TrainingConfig(fp16=True, loss_scale=64.0)).scale == 64.0
    dynamic = get_grad_scaler(TrainingConfig(fp16=True))
    assert dynamic.policy == ScalePolicy()
    assert dynamic.scale == 2.0**32
    wanted = TrainingConfig(
        fp16=True, loss_scale_value=8.0, loss_scale_window=5, min_loss_scale=2.0, hysteresis=4
    )
    assert get_grad_scaler(wanted).policy == ScalePolicy(
        initial_scale=8.0, growth_interval=5, min_scale=2.0, hysteresis=4
    )
