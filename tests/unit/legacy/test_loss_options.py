# SPDX-License-Identifier: Apache-2.0
"""Sums instead of means, and label smoothing."""

import numpy as np
import pytest
from mindspore import Tensor

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.core import loss_options, parallel_state
from mindspeed_ms.core.tensor_parallel import VocabParallelCrossEntropy
from mindspeed_ms.legacy.model.loss import LossWithMask

VOCABULARY = 11


@pytest.fixture
def options():
    comm.init_process_group()
    parallel_state.initialize_model_parallel()
    found = loss_options.current()
    yield found
    found.sums, found.label_smoothing, found.weighs_by_tokens = False, 0.0, False
    parallel_state.destroy_model_parallel()


def batch():
    random = np.random.RandomState(3)
    logits = random.randn(6, 2, VOCABULARY).astype(np.float32)
    labels = random.randint(0, VOCABULARY, (6, 2)).astype(np.int32)
    mask = (random.rand(6, 2) > 0.3).astype(np.float32)
    return logits, labels, mask


def losses(logits, labels, smoothing):
    """As of ``torch.nn.functional.cross_entropy`` with ``label_smoothing``."""
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = np.take_along_axis(logs, labels[..., None], -1)[..., 0]
    return -(1.0 - smoothing) * target - smoothing * logs.mean(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("sums", [False, True])
def test_a_loss_is_formed_as_the_run_says(options, sums, smoothing):
    options.sums, options.label_smoothing = sums, smoothing
    logits, labels, mask = batch()
    found = LossWithMask(VocabParallelCrossEntropy())(Tensor(logits), Tensor(labels), Tensor(mask))
    expected = (losses(logits, labels, smoothing) * mask).sum() / (1.0 if sums else mask.sum())
    assert float(found.asnumpy()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_logits_that_the_loss_owns_give_their_memory_to_the_gradient(options, smoothing):
    options.label_smoothing = smoothing
    arrays, found = batch(), {}
    for owns in (False, True):
        logits = autograd.requires_grad_(memory.from_numpy(arrays[0].copy()))
        autograd.enable()
        loss = LossWithMask(VocabParallelCrossEntropy(), owns_logits=owns)
        autograd.backward(loss(logits, Tensor(arrays[1]), Tensor(arrays[2])))
        found[owns] = autograd.get_grad(logits)
        assert np.array_equal(memory.as_numpy(logits), arrays[0]) is not owns
    assert np.array_equal(memory.as_numpy(found[True]), memory.as_numpy(found[False]))
