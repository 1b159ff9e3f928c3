# SPDX-License-Identifier: Apache-2.0
"""Rows and where they go: properties for random routings, capacities and layouts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_ms.legacy.model.moe.dispatch_plan import (
    drop_over_capacity,
    expert_capacity,
    padding_of,
    plan_exchange,
    sort_rows,
)


@st.composite
def routings(draw):
    """Choices and probabilities of every rank of an expert x expert tensor parallel layout."""
    ranks, tensor_ranks = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (3, 2)]))
    experts = ranks * draw(st.integers(1, 4))
    topk = draw(st.integers(1, min(3, experts)))
    tokens = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    liked = rng.random(experts) ** draw(st.sampled_from([1, 8]))  # 8: most go to few experts
    chosen = [
        np.array(
            [rng.permutation(experts)[np.argsort(-liked)[:topk]] for _ in range(tokens)], np.int32
        ).reshape(tokens, topk)
        if draw(st.booleans())
        else np.argsort(-rng.random((tokens, experts)) * liked, axis=1)[:, :topk].astype(np.int32)
        for _ in range(ranks * tensor_ranks)
    ]
    probs = [rng.random((tokens, topk)).astype(np.float32) for _ in chosen]
    factor = draw(st.sampled_from([None, 0.3, 1.0, 1.7]))
    policy = draw(st.sampled_from(["probs", "position"]))
    padded = factor is not None and draw(st.booleans())
    return ranks, tensor_ranks, experts, chosen, probs, factor, policy, padded


def take(rows, index):
    """Rows by index, zeros for -1."""
    out = np.zeros((len(index), *rows.shape[1:]), rows.dtype)
    out[index >= 0] = rows[index[index >= 0]]
    return out


@settings(max_examples=150, deadline=None)
@given(routings())
def test_every_kept_token_returns_to_its_place_with_its_probability(case):
    ranks, tensor_ranks, experts, chosen, probs, factor, policy, padded = case
    tokens, topk = chosen[0].shape
    capacity = expert_capacity(tokens, topk, experts, factor) if factor is not None else None
    if capacity is not None:
        chosen = [
            drop_over_capacity(c, p, capacity, policy) for c, p in zip(chosen, probs, strict=True)
        ]
    sorted_rows = [sort_rows(c, experts, capacity if padded else None) for c in chosen]
    counts = np.stack([rows.counts for rows in sorted_rows])
    counts = counts.reshape(ranks, tensor_ranks, experts)
    plans = [
        plan_exchange(counts, rank // tensor_ranks, rank % tensor_ranks)
        for rank in range(ranks * tensor_ranks)
    ]
    # A row says which token of which rank it is; what an expert adds says which expert it was.
    marks = [np.arange(tokens) + 1 + 1000 * rank for rank in range(len(chosen))]
    sent = [take(mark[:, None], rows.tokens) for mark, rows in zip(marks, sorted_rows, strict=True)]
    arrived = exchange(sent, plans, ranks, tensor_ranks, "input_splits")
    local = experts // ranks
    computed = []
    for rank, plan in enumerate(plans):
        first = rank // tensor_ranks * tensor_ranks
        peers = range(first, first + tensor_ranks)
        gathered = np.concatenate(
            [
                take(arrived[peer], padding_of(plans[peer].received_rows, plan.padded_rows))
                for peer in peers
            ]
        )
        rows = gathered[plan.order]
        assert len(rows) == sum(plan.counts)
        expert = np.repeat(np.arange(local) + rank // tensor_ranks * local, plan.counts)
        result = rows * 100 + expert[:, None]
        # The tensor parallel ranks return parts of a sum.
        computed.append(take(result / tensor_ranks, plan.back))
    scattered = []
    for rank, plan in enumerate(plans):
        first, mine = rank // tensor_ranks * tensor_ranks, rank % tensor_ranks
        part = slice(mine * plan.padded_rows, mine * plan.padded_rows + plan.received_rows)
        total = sum(computed[peer] for peer in range(first, first + tensor_ranks))
        scattered.append(total[part])
    returned = exchange(scattered, plans, ranks, tensor_ranks, "output_splits")
    for rank, rows in enumerate(sorted_rows):
        for token in range(tokens):
            for choice in range(topk):
                place, expert = rows.places[token, choice], chosen[rank][token, choice]
                assert (place < 0) == (expert < 0)
                if place >= 0:
                    want = marks[rank][token] * 100 + expert
                    assert round(float(returned[rank][place, 0])) == want
    check_capacity(chosen, capacity)


def exchange(rows, plans, ranks, tensor_ranks, splits):
    """All-to-all among the ranks that differ in their expert rank only."""
    results = []
    for rank in range(len(rows)):
        blocks = []
        for source in range(ranks):
            peer = source * tensor_ranks + rank % tensor_ranks
            sizes = getattr(plans[peer], splits)
            start = sum(sizes[: rank // tensor_ranks])
            blocks.append(rows[peer][start : start + sizes[rank // tensor_ranks]])
        results.append(np.concatenate(blocks))
    back = "output_splits" if splits == "input_splits" else "input_splits"
    for rank, plan in enumerate(plans):
        assert len(results[rank]) == sum(getattr(plan, back))
    return results


def check_capacity(chosen, capacity):
    if capacity is None:
        return
    for choices in chosen:
        kept = choices[choices >= 0]
        assert kept.size == 0 or np.bincount(kept).max() <= capacity


@settings(max_examples=100, deadline=None)
@given(routings())
def test_an_over_full_expert_keeps_the_best_or_the_first(case):
    _, _, experts, chosen, probs, factor, policy, _ = case
    capacity = expert_capacity(*chosen[0].shape, experts, factor or 0.5)
    kept = drop_over_capacity(chosen[0], probs[0], capacity, policy)
    assert ((kept == chosen[0]) | (kept == -1)).all()
    for expert in range(experts):
        wanting, stayed = chosen[0] == expert, kept == expert
        assert stayed.sum() == min(capacity, wanting.sum())
        left = wanting & ~stayed
        if not left.any() or not stayed.any():
            continue
        if policy == "probs":
            assert probs[0][stayed].min() >= probs[0][left].max()
        else:
            assert np.argwhere(stayed)[:, 0].max() < np.argwhere(left)[:, 0].min()


def test_worked_example():
    rows = sort_rows(np.array([[1, 0], [1, 2], [-1, 1]], np.int32), 3)
    assert rows.tokens.tolist() == [0, 0, 1, 2, 1]
    assert rows.counts.tolist() == [1, 3, 1]
    assert rows.places.tolist() == [[1, 0], [2, 4], [-1, 3]]
    padded = sort_rows(np.array([[1, 0], [1, 2], [-1, 1]], np.int32), 3, capacity=3)
    assert padded.tokens.tolist() == [0, -1, -1, 0, 1, 2, 1, -1, -1]
    assert padded.counts.tolist() == [3, 3, 3]
    assert padded.places.tolist() == [[3, 0], [4, 6], [-1, 5]]
    assert expert_capacity(10, 2, 6, 1.0) == 4
