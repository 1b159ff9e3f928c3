# SPDX-License-Identifier: Apache-2.0
"""What a teacher keeps, and the loss of a student."""

import json

import numpy as np
import pytest
from mindspore import Tensor

from mindspeed_ms.backend import autograd, comm
from mindspeed_ms.core import distillation
from mindspeed_ms.core.distillation import ABSENT, FAR, likeliest, nucleus, teacher_loss

VOCABULARY, K = 13, 5


@pytest.fixture(autouse=True)
def group():
    comm.init_process_group()
    autograd.enable()
    return comm.world_group()


def logs(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def drawn(seed):
    return np.random.RandomState(seed).randn(4, 3, VOCABULARY).astype(np.float32)


def test_the_likeliest_tokens_are_kept_in_their_order(group):
    logits = drawn(0)
    values, tokens = likeliest(logits, K, group)
    order = np.argsort(-logits, -1)[..., :K]
    np.testing.assert_array_equal(tokens, order)
    np.testing.assert_allclose(values, np.take_along_axis(logs(logits), order, -1), rtol=1e-5)
    assert likeliest(logits, 99, group)[0].shape[-1] == VOCABULARY


@pytest.mark.parametrize(("share", "min_k"), [(0.5, 1), (0.01, 2), (1.0, 1)])
def test_a_nucleus_is_the_smallest_that_reaches_its_share(group, share, min_k):
    values, tokens = likeliest(drawn(1), VOCABULARY, group)
    kept_values, kept = nucleus(values, tokens, share, min_k)
    for place in np.ndindex(values.shape[:2]):
        sums = np.cumsum(np.exp(values[place]))
        count = max(min_k, min(VOCABULARY, int(np.searchsorted(sums, share, "left")) + 1))
        assert (kept[place] != ABSENT).sum() == count
        assert (kept_values[place][count:] == FAR).all()


def loss_of(logits, values, tokens):
    share = np.where(tokens == ABSENT, 0.0, np.exp(values))
    student = np.take_along_axis(logs(logits.astype(np.float64)), np.maximum(tokens, 0), -1)
    return (share * (values - student)).sum(-1)


def test_a_students_loss_and_its_gradient(group):
    values, tokens = nucleus(*likeliest(drawn(2), K, group), 0.6, 1)
    logits, weights = drawn(3), np.random.RandomState(4).rand(4, 3).astype(np.float32)
    given = Tensor(logits)
    autograd.requires_grad_(given)
    with autograd.enable_grad():
        losses = teacher_loss(given, values, tokens, group)
        autograd.backward(losses, Tensor(weights))
    np.testing.assert_allclose(losses.asnumpy(), loss_of(logits, values, tokens), rtol=1e-4)
    gradient, step = autograd.get_grad(given).asnumpy(), 1e-4
    for index in [(0, 0, 0), (1, 2, 5), (3, 1, int(tokens[3, 1, 0])), (2, 0, 12)]:
        ends = []
        for sign in (1.0, -1.0):
            moved = logits.astype(np.float64)
            moved[index] += sign * step
            ends.append((loss_of(moved, values, tokens) * weights).sum())
        assert gradient[index] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-5)


def test_a_student_equal_to_its_teacher_has_no_gradient(group):
    logits = drawn(5)
    values, tokens = likeliest(logits, VOCABULARY, group)
    given = Tensor(logits)
    autograd.requires_grad_(given)
    with autograd.enable_grad():
        losses = teacher_loss(given, values, tokens, group)
        autograd.backward(losses, Tensor(np.ones((4, 3), np.float32)))
    np.testing.assert_allclose(losses.asnumpy(), 0.0, atol=1e-6)
    np.testing.assert_allclose(autograd.get_grad(given).asnumpy(), 0.0, atol=1e-6)


def test_a_model_outside_of_a_run_is_neither_teacher_nor_student():
    assert not distillation.Distillation().is_on


def saved(folder, first, rows=2, length=4):
    """A teacher's file of some sequences, with one token per place."""
    samples = np.arange(first, first + rows)
    shape = (length, rows, 1)
    np.savez(
        folder / f"samples_{first:09d}_{samples[-1]:09d}__dp0_cp0.npz",
        meta=json.dumps({"identity": "", "dtype": "fp32"}),
        samples=samples,
        places=np.arange(length),
        values=np.full(shape, -0.5, np.float32),
        tokens=np.broadcast_to(samples[None, :, None], shape).astype(np.int32),
    )


def test_files_that_a_teacher_writes_meanwhile_are_found(single_rank, tmp_path, monkeypatch):
    """The folder is read when it is needed, not in every micro-batch."""
    student = distillation.Distillation(loads=distillation.LoadOptions(folder=tmp_path))
    listings, iterdir = [], type(tmp_path).iterdir
    monkeypatch.setattr(
        type(tmp_path), "iterdir", lambda path: listings.append(path) or iterdir(path)
    )
    saved(tmp_path, 0)
    student.begin_step(0)
    assert student.teacher(1, 4)[1][:, 0, 0].tolist() == [0] * 4
    assert student.teacher(1, 4)[1][:, 0, 0].tolist() == [1] * 4
    assert len(listings) == 1
    saved(tmp_path, 2)
    assert student.teacher(1, 4)[1][:, 0, 0].tolist() == [2] * 4
    student.begin_step(9)
    with pytest.raises(ValueError, match="holds no logits of sequence 9 of the run"):
        student.teacher(1, 4)
