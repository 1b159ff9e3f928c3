# SPDX-License-Identifier: Apache-2.0
"""Attention in parts: documents, accumulation over blocks of keys, dropout words by place."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest
from ops_reference import kernel_set  # noqa: F401 - an autouse fixture

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops import AttentionCall, Documents, ScorePlaces

RNG = np.random.RandomState(11)
FP32 = 3e-6
"""Sums of a few hundred products in another order, and one more rounding per merge."""


def case(s, b, n, g, d, e=None, keys=None):
    keys = s if keys is None else keys
    return [
        RNG.randn(s, b, n, d),
        RNG.randn(keys, b, g, d),
        RNG.randn(keys, b, g, d if e is None else e),
    ]


def numbers(b, s, documents):
    """Sorted numbers of documents of random lengths, some missing."""
    return np.sort(RNG.randint(0, documents, (b, s)), axis=1).astype(np.int32)


def gradients(arrays, dy, **options):
    """The unsharded attention: result and gradients, by its definition in float64."""
    function = lambda *a: ref.attention(*a, **options)  # noqa: E731
    return function(*arrays), ref.numeric_grads(function, arrays, dy)


@pytest.mark.parametrize("rows", [1, 2], ids=["shared", "each"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_documents_hide_what_their_dense_mask_hides(causal, rows):
    arrays = case(5, 2, 4, 2, 3, e=2)
    ids = numbers(rows, 5, 3)
    documents = Documents(ids, ids)
    dy = RNG.randn(5, 2, 8)
    y, grads = ref.run(
        lambda *a: ops.attention(*a, scale=0.5, causal=causal, documents=documents), arrays, dy
    )
    mask = ref.document_mask(documents)
    want, wanted = gradients(arrays, dy, scale=0.5, causal=causal, mask=mask)
    ref.assert_close(y, want, FP32)
    for got, expected in zip(grads, wanted, strict=True):
        ref.assert_close(got, expected, FP32)


def test_long_documents_match_the_dense_mask():
    """Many blocks: whole ones without a common document, whole ones of one document, and edges."""
    arrays = case(300, 2, 2, 1, 16)
    ids = np.sort(RNG.randint(0, 5, (2, 300)), axis=1).astype(np.int32)
    dy = RNG.randn(300, 2, 32)
    documents = Documents(ids, ids)
    hidden = ref.document_mask(documents) | np.triu(np.ones((300, 300), bool), 1)
    y, grads = ref.run(lambda *a: ops.attention(*a, scale=0.3, documents=documents), arrays, dy)
    want, wanted = ref.run(
        lambda *a: ops.attention(*a, scale=0.3, causal=False, mask=ms.Tensor(hidden)), arrays, dy
    )
    for got, expected in zip([y, *grads], [want, *wanted], strict=True):
        ref.assert_close(got, expected, FP32)


def in_blocks(arrays, dy, blocks, dtype=ms.float32, **options):
    """Result and gradients of an attention whose keys come in blocks.

    Each block is (rows, columns, call): slices of queries and keys, and the call's options.
    """
    q, k, v = (ref.tensor(a, dtype) for a in arrays)
    s, b, n, _ = q.shape
    out = memory.zeros((s, b, n * v.shape[3]))
    lse = memory.from_numpy(np.full((s, b, n), -np.inf, np.float32))
    pieces = []
    for rows, columns, call in blocks:
        part = [memory.contiguous(t) for t in (q[rows], k[columns], v[columns])]
        views = [narrow(t, rows) for t in (out, lse)]
        mask = options.get("mask")
        mask = None if mask is None else ms.Tensor(np.array(mask[:, :, rows][..., columns]))
        ops.attention_accumulate(*part, *views, call, mask)
        pieces.append((part, mask))
    stored = ref.tensor(ref.values(out), dtype)
    grads = [memory.zeros(t.shape) for t in (q, k, v)]
    dout = ref.tensor(dy, dtype)
    for (rows, columns, call), (part, mask) in zip(blocks, pieces, strict=True):
        ops.attention_backward_accumulate(
            *part,
            *(narrow(t, rows) for t in (stored, lse, dout)),
            tuple(narrow(g, at) for g, at in zip(grads, (rows, columns, columns), strict=True)),
            call,
            mask,
        )
    return ref.values(stored), [ref.values(g) for g in grads], lse.asnumpy()


def narrow(tensor, rows):
    return ms.mint.narrow(tensor, 0, rows.start, rows.stop - rows.start)


ZIGZAG = [  # rank 1 of 2, its own keys and then those of rank 0, over 8 tokens
    (slice(0, 4), slice(4, 8), True),
    (slice(0, 4), slice(0, 2), False),
]


@pytest.mark.parametrize(
    "dtype,tolerance", [(ms.float32, FP32), (ms.bfloat16, 2**-7), (ms.float16, 2**-9)], ids=str
)
def test_blocks_of_keys_accumulate_to_the_whole(dtype, tolerance):
    """A rank of a ring: its result and gradients are those of its queries in the whole."""
    places = np.array([2, 3, 4, 5])  # of queries; keys in the order of the blocks' tensor
    key_places = np.array([0, 1, 6, 7, 2, 3, 4, 5])
    arrays = [ref.values(ref.tensor(a, dtype)) for a in case(4, 2, 4, 2, 3, keys=8)]
    dy = ref.values(ref.tensor(RNG.randn(4, 2, 12), dtype))
    blocks = [(r, c, AttentionCall(scale=0.4, causal=causal)) for r, c, causal in ZIGZAG]
    y, grads, lse = in_blocks(arrays, dy, blocks, dtype)
    hidden = (key_places[None, :] > places[:, None])[None, None]
    want, wanted = gradients(arrays, dy, scale=0.4, causal=False, mask=hidden)
    ref.assert_close(y, want, tolerance)
    for got, expected in zip(grads, wanted, strict=True):
        ref.assert_close(got, expected, tolerance)
    scores = np.einsum("ibnd,jbnd->ibnj", arrays[0], np.repeat(arrays[1], 2, axis=2)) * 0.4
    scores = np.where(hidden[0, 0][:, None, None], -np.inf, scores)
    np.testing.assert_allclose(lse, np.log(np.exp(scores).sum(-1)), rtol=1e-5, atol=1e-5)


def test_blocks_with_documents_masks_and_unequal_heads_accumulate():
    arrays = case(70, 1, 4, 2, 8, e=5, keys=140)
    queries, keys = numbers(1, 70, 4), numbers(1, 140, 4)
    mask = RNG.rand(1, 1, 70, 140) < 0.3
    dy = RNG.randn(70, 1, 20)
    whole = Documents(queries, keys)
    blocks = []
    for columns in (slice(0, 66), slice(66, 130), slice(130, 140)):
        documents = whole.block(slice(0, 70), columns)
        blocks.append((slice(0, 70), columns, AttentionCall(scale=0.4, documents=documents)))
    y, grads, _ = in_blocks(arrays, dy, blocks, mask=mask)
    hidden = ms.Tensor(mask | ref.document_mask(whole))
    want, wanted = ref.run(
        lambda *a: ops.attention(*a, scale=0.4, causal=False, mask=hidden), arrays, dy
    )
    for got, expected in zip([y, *grads], [want, *wanted], strict=True):
        ref.assert_close(got, expected, FP32)


def test_queries_without_a_key_stay_zero_while_blocks_accumulate():
    arrays = case(3, 1, 2, 1, 4, keys=4)
    alone = Documents(np.array([[0, 5, 9]], np.int32), np.array([[5, 5, 6, 6]], np.int32))
    assert not alone.are_apart and alone.block(slice(0, 1), slice(0, 4)).are_apart
    call = AttentionCall(scale=1.0, documents=alone)
    y, grads, lse = in_blocks(arrays, np.ones((3, 1, 8)), [(slice(0, 3), slice(0, 4), call)])
    assert np.all(y[[0, 2]] == 0) and np.all(grads[0][[0, 2]] == 0)
    assert np.all(np.isneginf(lse[[0, 2]])) and np.all(np.isfinite(lse[1]))
    assert all(np.all(np.isfinite(g)) for g in grads)


@pytest.mark.parametrize("keys", [8, 200])
def test_dropout_words_are_named_by_the_place_in_the_whole(keys):
    """Half of the heads and a scattered part of the queries and keys drop what the whole drops."""
    q, k, v = case(keys, 2, 4, 4, 4)
    dy = RNG.randn(keys, 2, 16)
    options = {"scale": 0.4, "causal": False, "dropout_p": 0.4}
    whole, _ = ref.run(
        lambda *a: ops.attention(*a, generator=Generator(7, 20), **options), [q, k, v], dy
    )
    order = np.concatenate((np.arange(3, keys), np.arange(3)))
    rows = np.array([1, 2, keys - 1])
    places = ScorePlaces(4, 2, keys, keys, rows, order)
    generator = Generator(7, 20)
    part, _ = ref.run(
        lambda *a: ops.attention(*a, generator=generator, places=places, **options),
        [q[rows][:, :, 2:], k[order][:, :, 2:], v[order][:, :, 2:]],
        dy[rows][..., 8:],
    )
    ref.assert_close(part, whole[rows][..., 8:], FP32)
    assert generator.offset == 20 + 2 * 4 * keys * keys


def test_some_heads_of_all_queries_drop_what_the_whole_drops():
    q, k, v = case(6, 2, 4, 4, 4)
    dy = RNG.randn(6, 2, 16)
    options = {"scale": 0.4, "causal": True, "dropout_p": 0.4}
    whole, _ = ref.run(
        lambda *a: ops.attention(*a, generator=Generator(5), **options), [q, k, v], dy
    )
    places = ScorePlaces(4, 1, 6, 6)
    part, _ = ref.run(
        lambda *a: ops.attention(*a, generator=Generator(5), places=places, **options),
        [a[:, :, 1:3] for a in (q, k, v)],
        dy[..., 4:12],
    )
    ref.assert_close(part, whole[..., 4:12], FP32)


def test_dropout_in_blocks_is_that_of_the_whole():
    arrays = case(9, 2, 4, 2, 4)
    dy = RNG.randn(9, 2, 16)
    options = {"scale": 0.4, "causal": False, "dropout_p": 0.3}
    want, wanted = ref.run(
        lambda *a: ops.attention(*a, generator=Generator(3), **options), arrays, dy
    )
    places = ScorePlaces(4, 0, 9, 9, np.arange(9), np.arange(9))
    dropout = ops.draw_dropout(0.3, Generator(3), (2, 4, 9, 9), places)
    blocks = []
    for columns in (slice(4, 9), slice(0, 4)):
        part = ops.ScoreDropout(
            0.3, dropout.seed, dropout.offset, places.block(slice(0, 9), columns)
        )
        blocks.append((slice(0, 9), columns, AttentionCall(scale=0.4, dropout=part)))
    y, grads, _ = in_blocks(arrays, dy, blocks)
    for got, expected in zip([y, *grads], [want, *wanted], strict=True):
        ref.assert_close(got, expected, FP32)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Documents(np.zeros((1, 3)), np.array([[1, 0]])), "never decrease"),
        (lambda: Documents(np.zeros((1, 3)), np.zeros((2, 3))), "the same batch"),
        (lambda: Documents(np.zeros(3), np.zeros(3)), "must be"),
    ],
)
def test_documents_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_shapes_of_parts_are_refused():
    q, k, v = (ref.tensor(a) for a in case(4, 2, 2, 2, 4))
    call = AttentionCall(scale=1.0)
    out, lse = memory.zeros((4, 2, 8)), memory.zeros((4, 2, 2))
    with pytest.raises(ValueError, match="document numbers"):
        wrong = Documents(np.zeros((1, 3)), np.zeros((1, 4)))
        ops.attention(q, k, v, scale=1.0, documents=wrong)
    with pytest.raises(ValueError, match="they must be"):
        ops.attention_accumulate(q, k, v, memory.zeros((4, 2, 4)), lse, call)
    with pytest.raises(ValueError, match="lse is"):
        ops.attention_accumulate(q, k, v, out, memory.zeros((4, 2, 2), ms.float16), call)
    with pytest.raises(ValueError, match="must be Float32"):
        grads = tuple(memory.zeros(t.shape, ms.float16) for t in (q, k, v))
        ops.attention_backward_accumulate(q, k, v, out, lse, out, grads, call)
