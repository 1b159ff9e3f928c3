# SPDX-License-Identifier: Apache-2.0
"""Products of few rows while a model serves, and weights as eight bits."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config.moe_config import MoEConfig
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.engine.parallel_setup import set_seed
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.ops.cpu.decode import quantized_rows

pytestmark = [
    pytest.mark.usefixtures("single_rank"),
    pytest.mark.skipif("ops.selected() != 'cpu'"),
]

TYPES = {ms.float32: 2e-6, ms.bfloat16: 1e-2, ms.float16: 1.5e-3}


def _drawn(rng, *shape):
    return memory.from_numpy(rng.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("dtype", list(TYPES), ids=str)
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 16, 17])
@pytest.mark.parametrize("sizes", [(33, 70), (64, 3), (1, 9), (2, 4)])
def test_a_product_of_few_rows_is_that_of_many(dtype, rows, sizes):
    width, out = sizes
    rng = np.random.default_rng(0)
    parts = [_drawn(rng, *shape) for shape in ((rows, width), (out, width), (out,))]
    x, weight, bias = (ops.cast(part, dtype) for part in parts)
    for given in (None, bias):
        wanted = memory.as_numpy(ops.cast(ops.linear_forward(x, weight, given), ms.float32))
        with autograd.inference_mode():
            found = memory.as_numpy(ops.cast(ops.linear_forward(x, weight, given), ms.float32))
        assert np.abs(found - wanted).max() <= TYPES[dtype] * max(np.abs(wanted).max(), 1.0)


def test_a_row_does_not_depend_on_those_beside_it():
    rng = np.random.default_rng(0)
    x, weight = _drawn(rng, 16, 40), _drawn(rng, 24, 40)
    with autograd.inference_mode():
        together = memory.as_numpy(ops.linear_forward(x, weight, None))
        for rows in (1, 5, 8):
            part = memory.from_numpy(memory.as_numpy(x)[:rows].copy())
            alone = memory.as_numpy(ops.linear_forward(part, weight, None))
            np.testing.assert_array_equal(alone, together[:rows])
    assert not autograd.is_inference_mode_enabled()


@pytest.mark.parametrize("dtype", list(TYPES), ids=str)
def test_weights_as_eight_bits_are_the_nearest(dtype):
    rng = np.random.default_rng(0)
    weight = ops.cast(_drawn(rng, 5, 37), dtype)
    memory.as_numpy(weight)[2] = 0
    wanted = memory.as_numpy(ops.cast(weight, ms.float32))
    narrow, scales = quantized_rows(weight)
    error = np.abs(narrow * scales[:, None] - wanted).max(axis=1)
    assert (error <= scales * 0.5001).all()
    assert (np.abs(narrow).max(axis=1) == [127, 127, 0, 127, 127]).all() and scales[2] == 0


@pytest.mark.parametrize("options", [{}, {"moe_config": MoEConfig(num_experts=4)}])
def test_a_model_steps_with_weights_as_eight_bits(options):
    set_seed(5)
    model = GPTModel(model_config({**LLAMA, **NO_BIAS}, seq_length=16, **options))
    prompts, new = [[3, 1, 4], [6]], ([1, 2], [3, 4], [5, 6])
    found = []
    for in_int8 in (False, True):
        with InferenceEngine([model], model.config, in_int8=in_int8) as engine:
            slots, _ = engine.add(prompts)
            found.append(np.array([engine.step(slots, tokens) for tokens in new]))
    error = np.abs(found[1] - found[0]) / np.abs(found[0]).max()
    assert 1e-5 < error.max() < 0.05


def test_a_model_without_a_native_form_keeps_its_weights():
    config = model_config(LLAMA, moe_config=MoEConfig(num_experts=4, moe_router_force_biased=0.5))
    with pytest.raises(ValueError, match="models on one rank that have a native form"):
        InferenceEngine([GPTModel(config)], config, in_int8=True)
