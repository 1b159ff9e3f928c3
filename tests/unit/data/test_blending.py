# SPDX-License-Identifier: Apache-2.0
"""The order of a blend equals the sequential rule, compiled or not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_ms.data import blending, native
from mindspeed_ms.data.blending import build_blending_indices, build_exhaustive_blending_indices


def literal(weights, size, limits=None):
    counts, datasets, samples = [0] * len(weights), [], []
    for step in range(size):
        scale = max(float(step), 1.0)
        errors = [
            w * scale - c if limits is None or c < limits[i] else -np.inf
            for i, (w, c) in enumerate(zip(weights, counts, strict=True))
        ]
        chosen = int(np.argmax(errors))
        datasets.append(chosen)
        samples.append(counts[chosen])
        counts[chosen] += 1
    return datasets, samples


@pytest.fixture(params=["as built", "numpy"])
def either(request, monkeypatch):
    """With the compiled helper, if it was built, and without."""
    if request.param == "numpy":
        monkeypatch.setattr(blending, "native_indices", lambda: None)
        monkeypatch.setattr(blending, "_SEQUENTIAL_BELOW", 1)
        monkeypatch.setattr(blending, "_WARM_UP_STEPS", 4)


WEIGHTS = [
    [0.3, 0.7],
    [1.0],
    [0.5, 0.25, 0.25],
    [1 / 3, 1 / 3, 1 / 3],
    [0.1] * 10,
    [0.2, 0.3, 0.5],
    [1e-4, 1 - 1e-4],
    [0.97, 0.01, 0.01, 0.01],
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_structured_weights_equal_the_rule(either, weights):
    indices = build_blending_indices(weights, 3000)
    expected = literal(weights, 3000)
    assert indices.dataset_index.tolist() == expected[0]
    assert indices.dataset_sample_index.tolist() == expected[1]
    assert (indices.dataset_index.dtype, indices.dataset_sample_index.dtype) == (
        np.int16,
        np.int64,
    )


@pytest.mark.parametrize("num_corpora", [2, 3, 7, 8, 9, 40])
def test_random_weights_equal_the_rule(either, num_corpora):
    weights = np.random.default_rng(num_corpora).random(num_corpora)
    weights = (weights / weights.sum()).tolist()
    indices = build_blending_indices(weights, 4001)
    assert indices.dataset_index.tolist() == literal(weights, 4001)[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_exhaustive_blends_equal_the_rule(sizes):
    total = sum(sizes)
    expected = literal([size / total for size in sizes], total, sizes)
    assert build_exhaustive_blending_indices(sizes).dataset_index.tolist() == expected[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blending, "native_indices", lambda: None)
        patch.setattr(blending, "_SEQUENTIAL_BELOW", 1)
        patch.setattr(blending, "_WARM_UP_STEPS", 2)
        assert build_exhaustive_blending_indices(sizes).dataset_index.tolist() == expected[0]


def test_lanes_that_never_agree_fall_back_to_the_walk(monkeypatch):
    monkeypatch.setattr(blending, "native_indices", lambda: None)
    monkeypatch.setattr(blending, "_SEQUENTIAL_BELOW", 1)
    monkeypatch.setattr(blending, "_WARM_UP_STEPS", 1)
    monkeypatch.setattr(blending, "_MAX_ROUNDS", 0)
    assert (
        build_blending_indices([0.3, 0.7], 500).dataset_index.tolist()
        == (literal([0.3, 0.7], 500)[0])
    )


def test_a_helper_that_does_not_load_is_reported_and_not_used(tmp_path, monkeypatch, caplog):
    (tmp_path / "_kernels_indices.so").write_bytes(b"no library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    assert native.native_indices.__wrapped__() is None
    assert "does not load" in caplog.text
