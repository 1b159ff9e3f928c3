# SPDX-License-Identifier: Apache-2.0
"""Which blocks of scores each rank of a ring computes: together the mask, each score once."""

import numpy as np
import pytest

from mindspeed_ms import ops
from mindspeed_ms.core.context_parallel.blocks import SharedAttention, block_of
from mindspeed_ms.plan.sequence_slices import positions_on_cp_rank

CAUSAL = ops.AttentionCall(scale=1.0, causal=True)


def places_of(ranks, length):
    if ranks == 1:
        return (np.arange(length),)
    return tuple(positions_on_cp_rank(length, ranks, rank) for rank in range(ranks))


def computed(block, rows, columns):
    """(visible, calculated) scores of a block of a causal attention, as the kernels see it."""
    shape = (block.rows.stop - block.rows.start, block.columns.stop - block.columns.start)
    visible = np.ones(shape, bool)
    if block.causal:
        visible = np.tri(*shape, k=shape[1] - shape[0], dtype=bool)
    return visible, (rows[block.rows][:, None], columns[block.columns][None, :])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 8, 16, 64])
def test_every_visible_score_is_computed_once(ranks, causal):
    length = 4 * ranks
    places = places_of(ranks, length)
    times = np.zeros((length, length), int)
    for rank in range(ranks):
        for owner in range(ranks):
            block = block_of(rank, owner, length // ranks, causal)
            visible, at = computed(block, places[rank], places[owner])
            times[at] += visible
    np.testing.assert_array_equal(times, np.tri(length, dtype=int) if causal else 1)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_every_step_of_the_ring_has_the_same_work(ranks):
    """Away from the diagonal; so no rank waits for another one."""
    areas = set()
    for rank in range(ranks):
        for owner in set(range(ranks)) - {rank}:
            block = block_of(rank, owner, 8, True)
            areas.add(
                (block.rows.stop - block.rows.start) * (block.columns.stop - block.columns.start)
            )
    assert areas == {8 * 4}


@pytest.mark.parametrize("ranks", [2, 4])
def test_documents_and_masks_are_those_of_the_tokens(ranks):
    length = 8 * ranks
    rng = np.random.default_rng(3)
    numbers = np.sort(rng.integers(0, 6, (2, length)), axis=1).astype(np.int32)
    mask = rng.random((1, 1, length, length)) < 0.5
    places = places_of(ranks, length)
    seen = np.zeros((2, length, length), bool)
    skipped = 0
    for rank in range(ranks):
        documents = ops.Documents(numbers, numbers)
        options = ops.AttentionCall(scale=1.0, causal=True, documents=documents)
        shared = SharedAttention(rank, places, options)
        dense = SharedAttention(rank, places, CAUSAL, mask=mask[:, :, places[rank]])
        for owner in range(ranks):
            (whole,) = dense.blocks(owner)
            at = (places[rank][:, None], places[owner][None, :])
            assert not whole.causal
            np.testing.assert_array_equal(
                dense.mask_of(whole, owner).asnumpy()[0, 0], mask[0, 0][at]
            )
            if not shared.blocks(owner):
                skipped += 1
                continue
            (block,) = shared.blocks(owner)
            call = shared.call(block, owner)
            visible, at = computed(block, places[rank], places[owner])
            seen[:, at[0], at[1]] |= visible & ~call.documents.hidden()[:, 0]
    same = numbers[:, :, None] == numbers[:, None, :]
    np.testing.assert_array_equal(seen, same & np.tri(length, dtype=bool))
    assert ranks == 2 or skipped  # ranks that have no document in common


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize("left", [0, 3, 8, 20, 200])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_blocks_of_a_window_are_its_scores_and_skip_the_rest(ranks, left, causal):
    length = 16 * ranks
    places = places_of(ranks, length)
    window = (left, None if causal else 5)
    options = ops.AttentionCall(scale=1.0, causal=causal, window=window)
    times, calculated = np.zeros((length, length), int), 0
    for rank in range(ranks):
        shared = SharedAttention(rank, places, options)
        for owner in range(ranks):
            for block in shared.blocks(owner):
                rows, columns = places[rank][block.rows], places[owner][block.columns]
                call = shared.call(block, owner)
                hidden = call.hidden(len(rows), len(columns))
                visible = 1 if hidden is None else ~hidden[0, 0]
                assert np.any(visible), "a block outside the window"
                times[rows[:, None], columns[None]] += visible
                calculated += len(rows) * len(columns)
            if rank != owner:  # what one rank knows of another is what that one computes
                other = SharedAttention(owner, places, options)
                assert other.blocks(rank) == shared.blocks(rank, owner)
    away = np.arange(length)[None] - np.arange(length)[:, None]
    seen = (away >= -left) & (away <= (0 if causal else 5))
    np.testing.assert_array_equal(times, seen)
    if ranks == 4 and left <= 8:
        assert calculated <= length * length // 2
