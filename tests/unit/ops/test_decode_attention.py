# SPDX-License-Identifier: Apache-2.0
"""A few queries against the keys of a cache: rows of different lengths, padding, slots."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest
from ops_reference import kernel_set  # noqa: F401 - an autouse fixture
from test_attention_variants import ROUNDING, SLOPES, defined

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd
from mindspeed_ms.ops import KeyRanges

KEYS, ROWS, HEADS, GROUPS, DIM, VALUE_DIM = 700, 3, 4, 2, 20, 12

OPTIONS = {
    "plain": {},
    "window": {"window": (40, None)},
    "both sides": {"causal": False, "window": (100, 3)},
    "cap and slopes": {"softcap": 2.0, "slopes": SLOPES},
    "sinks": {"sinks": True},
}


def cache(rng, dtype):
    """Keys and values of whole rows, rounded to the type."""
    shapes = [(KEYS, ROWS, GROUPS, width) for width in (DIM, VALUE_DIM)]
    return [ref.values(ref.tensor(rng.standard_normal(shape), dtype)) for shape in shapes]


def with_garbage(array, ranges, slots):
    """What a cache holds: NaN outside the ranges, and in slots that no row has."""
    rows = array.swapaxes(0, 1).copy()
    for row, start, stop in zip(rows, ranges.starts, ranges.stops, strict=True):
        row[:start] = row[stop:] = np.nan
    if slots is None:
        return rows.swapaxes(0, 1)
    whole = np.full((max(slots) + 2, *rows.shape[1:]), np.nan)
    whole[slots] = rows
    return whole


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("slots", [None, [3, 0, 1]], ids=["rows", "slots"])
@pytest.mark.parametrize("queries", [1, 3, 70])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_rows_of_different_lengths_are_those_of_whole_attention(name, queries, slots, dtype):
    """One padded on the left, one with no earlier tokens, one nearly full; never reads the rest."""
    rng = np.random.default_rng(queries)
    options = dict(OPTIONS[name])
    sinks = rng.standard_normal(HEADS) if options.pop("sinks", False) else None
    ranges = KeyRanges.of_lengths([650, queries, 300], queries, [0, 0, 130])
    q = ref.values(ref.tensor(rng.standard_normal((queries, ROWS, HEADS, DIM)), dtype))
    whole = cache(rng, dtype)
    held = [ref.tensor(with_garbage(array, ranges, slots), dtype) for array in whole]
    y = ops.decode_attention(
        ref.tensor(q, dtype),
        *held,
        ranges,
        scale=0.3,
        slots=None if slots is None else np.array(slots),
        sinks=None if sinks is None else ref.tensor(sinks),
        **options,
    )
    want = defined(q, *whole, sinks, scale=0.3, ranges=ranges, **options)
    assert y.dtype == dtype
    ref.assert_close(ref.values(y), want, ROUNDING[dtype])


def test_tokens_one_by_one_give_what_the_prompt_gives_at_once():
    """Prompts padded on the right, then a token each; as one attention over all tokens."""
    rng = np.random.default_rng(1)
    keys = cache(rng, ms.float32)
    q = rng.standard_normal((9, ROWS, HEADS, DIM))
    k, v = (ref.tensor(array) for array in keys)
    prompt = np.array([6, 4, 1])
    padded = KeyRanges(np.zeros(3), prompt, np.zeros(3))
    first = ops.decode_attention(ref.tensor(q[:6]), k, v, padded, scale=0.3)
    whole = defined(q, *(array[:9] for array in keys), scale=0.3)
    for row, length in enumerate(prompt):
        ref.assert_close(ref.values(first)[:length, row], whole[:length, row], 5e-6)
    for step in range(3):
        at = prompt + step
        token = np.stack([q[place, row] for row, place in enumerate(at)])[None]
        out = ops.decode_attention(
            ref.tensor(token), k, v, KeyRanges.of_lengths(at + 1, 1), scale=0.3
        )
        want = np.stack([whole[place, row] for row, place in enumerate(at)])[None]
        ref.assert_close(ref.values(out), want, 5e-6)


def test_a_row_without_keys_gives_zeros_and_nothing_is_recorded():
    rng = np.random.default_rng(2)
    q = ref.leaf(ref.tensor(rng.standard_normal((1, ROWS, HEADS, DIM))))
    k, v = (ref.leaf(ref.tensor(array)) for array in cache(rng, ms.float32))
    ranges = KeyRanges(np.array([0, 7, 0]), np.array([9, 7, 1]), np.array([8, 7, 0]))
    autograd.enable()
    out = ops.decode_attention(q, k, v, ranges, scale=1.0)
    assert not ref.values(out)[:, 1].any() and ref.values(out)[:, [0, 2]].all()
    assert not autograd.requires_grad(out)


@pytest.mark.parametrize(
    ("slots", "rows", "message"),
    [
        (None, 2, "rows and head size must be equal"),
        ([0, 1, 3], 3, "counted from 0"),
        ([0, -1, 1], 3, "counted from 0"),
        ([0, 1], 3, "rows and head size must be equal"),
    ],
)
def test_caches_that_do_not_fit_are_refused(slots, rows, message):
    q, k = ref.tensor(np.ones((1, rows, 2, 4))), ref.tensor(np.ones((3, 3, 2, 4)))
    ranges = KeyRanges.of_lengths([1] * rows, 1)
    with pytest.raises(ValueError, match=message):
        ops.decode_attention(
            q, k, k, ranges, scale=1.0, slots=None if slots is None else np.array(slots)
        )
