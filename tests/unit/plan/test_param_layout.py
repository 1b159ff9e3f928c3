# SPDX-License-Identifier: Apache-2.0
"""Layout arithmetic: no tensors, no ranks."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_ms.plan.param_layout import (
    BucketSpan,
    LayoutRules,
    Slot,
    buffer_layout,
    default_bucket_size,
    flat_layout,
    pieces_in,
    sharded_alignment,
)

SHAPES = [("embedding", (10, 4)), ("norm", (4,)), ("weight", (6, 4)), ("head", (10, 4))]


def _starts(layout):
    return {slot.name: slot.start for span in layout.buckets for slot in span.slots}


def test_parameters_lie_in_backward_order():
    layout = buffer_layout(SHAPES, LayoutRules())
    assert _starts(layout) == {"head": 0, "weight": 40, "norm": 64, "embedding": 68}
    assert layout.size == 108
    assert len(layout.buckets) == 1


def test_a_bucket_closes_with_the_parameter_that_fills_it():
    layout = buffer_layout(SHAPES, LayoutRules(bucket_size=41))
    assert [[slot.name for slot in span.slots] for span in layout.buckets] == [
        ["head", "weight"],
        ["norm", "embedding"],
    ]
    assert [(span.start, span.end) for span in layout.buckets] == [(0, 64), (64, 108)]


def test_distributed_optimizer_pads_parameters_and_buckets():
    rules = LayoutRules(param_alignment=64, bucket_alignment=sharded_alignment(3), bucket_size=41)
    layout = buffer_layout(SHAPES, rules)
    assert _starts(layout) == {"head": 0, "weight": 64, "norm": 384, "embedding": 448}
    assert [(span.start, span.end) for span in layout.buckets] == [(0, 384), (384, 768)]


def test_a_tied_embedding_gets_a_bucket_of_its_own():
    rules = LayoutRules(param_alignment=64, bucket_alignment=128)
    layout = buffer_layout(SHAPES, rules, own_bucket={"weight"})
    assert [[slot.name for slot in span.slots] for span in layout.buckets] == [
        ["head"],
        ["weight"],
        ["norm", "embedding"],
    ]
    first = buffer_layout(SHAPES, rules, own_bucket={"head"})
    assert [slot.name for slot in first.buckets[0].slots] == ["head"]


def test_sizes_of_buckets():
    assert default_bucket_size(8) == 40_000_000
    assert default_bucket_size(64) == 64_000_000
    assert sharded_alignment(2) == 128
    assert sharded_alignment(6) == 384
    assert sharded_alignment(2, high_bandwidth=True) == 2**16


def test_an_empty_buffer_has_no_buckets():
    layout = buffer_layout([], LayoutRules())
    assert layout.buckets == () and layout.size == 0


def test_a_bucket_that_does_not_divide_is_refused():
    span = BucketSpan(start=0, end=10, slots=(Slot(name="w", start=0, shape=(10,)),))
    with pytest.raises(ValueError, match="10 elements cannot be cut into 4"):
        span.shard(0, 4)


def test_flat_layout_aligns():
    slots, size = flat_layout([("a", (3,)), ("b", (2, 2))], alignment=4)
    assert [(slot.start, slot.end) for slot in slots] == [(0, 3), (4, 8)]
    assert size == 8


shapes = st.lists(
    st.lists(st.integers(1, 40), min_size=1, max_size=2).map(tuple), min_size=1, max_size=12
)


@given(shapes, st.integers(1, 8), st.sampled_from([None, 1, 100, 1000]), st.booleans())
def test_shards_cover_every_element_once(all_shapes, ranks, bucket_size, own):
    named = [(str(index), shape) for index, shape in enumerate(all_shapes)]
    rules = LayoutRules(
        param_alignment=64, bucket_alignment=sharded_alignment(ranks), bucket_size=bucket_size
    )
    layout = buffer_layout(named, rules, own_bucket={"0"} if own else ())
    seen = {name: [] for name, _ in named}
    end = 0
    for span in layout.buckets:
        assert span.start == end
        end = span.end
        for slot in span.slots:
            assert slot.start % 64 == 0 and span.start <= slot.start and slot.end <= span.end
        for rank in range(ranks):
            bounds = span.shard(rank, ranks)
            for piece in pieces_in(span, *bounds):
                assert piece.start + piece.size <= bounds[1] - bounds[0]
                seen[piece.name].append((piece.param_start, piece.size))
    assert end == layout.size
    for name, shape in named:
        position = 0
        for start, size in sorted(seen[name]):
            assert start == position
            position += size
        assert position == math.prod(shape)
