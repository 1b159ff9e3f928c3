# SPDX-License-Identifier: Apache-2.0
"""Regions, spans, digests and reading: arithmetic that every layout and format relies on."""

import math
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.parameter import ShardSpec
from mindspeed_ms.files import crc
from mindspeed_ms.formats import dtypes, names
from mindspeed_ms.formats.catalog import (
    CHUNK_BYTES,
    Catalog,
    StoredPiece,
    StoredTensor,
    TensorReader,
)
from mindspeed_ms.formats.containers import digest
from mindspeed_ms.formats.source import Source
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.plan.region import Region, Span, boxes_of_range


def take(full, region):
    """The local tensor of a region, by NumPy's own indexing."""
    indices = [
        np.concatenate([np.arange(start, start + length) for start, length in runs])
        for runs in region.runs
    ]
    return full[np.ix_(*indices)] if indices else full


def store(folder, full, spans, dtype, transposed=False):
    """A tensor whose pieces lie in one file each."""
    pieces = []
    for number, span in enumerate(spans):
        values = take(full, span.region).reshape(-1)[span.start : span.stop]
        if transposed:
            values = values.reshape(span.region.shape).T
        path = folder / f"{number}.bin"
        path.write_bytes(b"head" + np.ascontiguousarray(values).tobytes())
        pieces.append(StoredPiece(span, dtype, path, 4, transposed))
    return StoredTensor(full.shape, dtype, pieces)


@st.composite
def splits(draw, shape):
    """Regions that make up a tensor: parts along one dimension, each cut into flat ranges."""
    dim = draw(st.integers(0, len(shape) - 1))
    options = [
        (parts, stride)
        for parts in (1, 2, 3, 4)
        for stride in (1, 2, 3)
        if shape[dim] % (parts * stride) == 0
    ]
    parts, stride = draw(st.sampled_from(options))
    spans = []
    for part in range(parts):
        region = Region.of_part(shape, dim, part, parts, stride)
        cuts = sorted(draw(st.sets(st.integers(1, max(1, region.size - 1)), max_size=3)))
        bounds = [0, *[cut for cut in cuts if cut < region.size], region.size]
        spans += [Span(region, a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    return spans


SHAPES = st.sampled_from([(12,), (6, 4), (12, 6), (2, 12, 3), (4, 6, 2)])


@given(data=st.data(), shape=SHAPES)
@settings(max_examples=50, deadline=None)
def test_any_split_is_read_as_any_other(tmp_path_factory, data, shape):
    full = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    folder = tmp_path_factory.mktemp("pieces")
    stored = store(folder, full, data.draw(splits(shape)), "F32")
    with TensorReader() as reader:
        np.testing.assert_array_equal(reader.read(stored), full)
        for span in data.draw(splits(shape)):
            expected = take(full, span.region).reshape(-1)[span.start : span.stop]
            np.testing.assert_array_equal(reader.read_span(stored, span), expected)


@given(data=st.data(), shape=SHAPES)
@settings(max_examples=40, deadline=None)
def test_digest_is_the_same_for_every_split(data, shape):
    full = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    bits = full.view(np.uint32).reshape(-1).astype(object)
    expected = sum(int(b) * (2 * i + 1) for i, b in enumerate(bits)) % 2**64
    for sums in (digest.sums_function(), digest.sums_by_numpy):
        total = 0
        for span in data.draw(splits(shape)):
            values = take(full, span.region).reshape(-1)[span.start : span.stop]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(digest, "sums_function", lambda sums=sums: sums)
                total += digest.digest_part(np.ascontiguousarray(values), span, shape)
        assert total % 2**64 == expected


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_native_sums_equal_numpys(kind):
    matrix = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (37, 1001), dtype=kind)
    for part in (matrix, matrix[3:9, 100:900], matrix[:, ::2], matrix[:1]):
        assert digest.sums_function()(part) == digest.sums_by_numpy(part)
    wide = np.arange(3 << 20, dtype=np.uint32).reshape(1, -1)
    assert digest.sums_function()(wide) == digest.sums_by_numpy(wide)


def test_checksums_are_those_of_zlib():
    data = np.random.default_rng(0).integers(0, 256, 70_000, np.uint8).tobytes()
    for size in (0, 1, 4096, 4097, *range(5000, 5140), 65536, len(data)):
        for start in (0, 3):
            part = memoryview(data)[start : start + size]
            for value in (0, 0x12345678, 0xFFFFFFFF):
                assert crc.crc32(part, value) == zlib.crc32(part, value), (size, start, value)
    assert crc.crc32(data[9000:], crc.crc32(data[:9000])) == zlib.crc32(data)


def test_a_changed_bit_and_exchanged_elements_change_the_digest():
    values = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    span = Span.all_of(Region.whole((64,)))
    before = digest.digest_part(values, span, (64,))
    for place in range(64):
        changed = values.copy()
        changed.view(np.uint32)[place] ^= 1 << (place % 32)
        assert digest.digest_part(changed, span, (64,)) != before
    swapped = values[::-1].copy()
    assert digest.digest_part(swapped, span, (64,)) != before


def test_shard_metadata_and_regions_agree():
    full = np.arange(24 * 6).reshape(24, 6)
    for spec in (
        ShardSpec(partition_dim=0, partitions=3, partition_rank=1),
        ShardSpec(partition_dim=0, partition_stride=2, partitions=2, partition_rank=1),
        ShardSpec(partition_dim=1, partitions=2, partition_rank=0),
        ShardSpec(),
    ):
        local = spec.local_slice(full)
        np.testing.assert_array_equal(take(full, spec.region(local.shape)), local)


def test_transposed_and_interleaved_pieces(tmp_path):
    full = np.arange(24 * 5, dtype=np.float32).reshape(24, 5)
    rows = [  # query, key, value of two groups, stored apart
        Region.whole((24, 5)).with_runs(0, [(0, 6), (12, 6)]),
        Region.whole((24, 5)).with_runs(0, [(6, 3), (18, 3)]),
        Region.whole((24, 5)).with_runs(0, [(9, 3), (21, 3)]),
    ]
    for transposed in (False, True):
        stored = store(tmp_path, full, [Span.all_of(region) for region in rows], "F32", transposed)
        with TensorReader() as reader:
            np.testing.assert_array_equal(reader.read(stored), full)
            half = Region.of_part((24, 5), 0, 1, 2)
            np.testing.assert_array_equal(
                reader.read_span(stored, Span.all_of(half)).reshape(12, 5), full[12:]
            )


@pytest.mark.parametrize("shape", [(300, 129), (128, 256), (1, 500), (500, 1), (7,), ()])
def test_copies_of_transposed_matrices(shape):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for source in (values, np.asfortranarray(values)):
        for target in (np.zeros(shape, np.float32), np.zeros(shape[::-1], np.float32).T):
            dtypes.copy(target, source)
            np.testing.assert_array_equal(target, values)


def test_conversion_while_reading(tmp_path):
    full = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    stored = store(tmp_path, full, [Span.all_of(Region.whole((16, 8)))], "F32")
    with TensorReader() as reader:
        half = reader.read(stored, "BF16")
    back = dtypes.convert(half, "BF16", "F32")
    assert np.abs(back - full).max() <= np.abs(full).max() * 2**-8
    np.testing.assert_array_equal(dtypes.convert(back, "F32", "BF16"), half)


def test_bfloat16_rounds_to_even_and_keeps_nan_and_infinity():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0x7F800001], np.uint32)
    got = dtypes.convert(bits.view(np.float32), "F32", "BF16")
    assert [hex(value) for value in got[:4]] == ["0x3f80", "0x3f82", "0x3f81", "0x7f80"]
    assert np.isnan(dtypes.convert(got[4:], "BF16", "F32")[0])
    with pytest.raises(ValueError, match="cannot convert I64 to F32"):
        dtypes.convert(np.zeros(1, np.int64), "I64", "F32")


def test_incomplete_and_cut_off_tensors_are_named(tmp_path):
    full = np.zeros((8, 4), np.float32)
    region = Region.of_part((8, 4), 0, 0, 2)
    stored = store(tmp_path, full, [Span.all_of(region)], "F32")
    with TensorReader() as reader:
        with pytest.raises(ValueError, match="the checkpoint holds 16; it is incomplete"):
            reader.read(stored)
        (tmp_path / "0.bin").write_bytes(b"head" + bytes(20))
        with pytest.raises(ValueError, match="0.bin ends after 24 bytes"):
            reader.read_span(stored, Span.all_of(region))


@given(data=st.data(), shape=SHAPES)
@settings(max_examples=40, deadline=None)
def test_ranges_become_boxes_in_order(data, shape):
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    numbers = np.arange(size).reshape(shape)
    seen = []
    for (low, extent), flat in boxes_of_range(shape, start, stop):
        box = numbers[tuple(slice(a, a + b) for a, b in zip(low, extent, strict=True))]
        assert box.reshape(-1)[0] == flat
        seen += box.reshape(-1).tolist()
    assert seen == list(range(start, stop))


def test_impossible_regions_are_refused():
    with pytest.raises(ValueError, match="does not split into 3 parts"):
        Region.of_part((8, 4), 0, 0, 3)
    with pytest.raises(ValueError, match=r"has the run \(0, 0\)"):
        Region(((((0, 0)),),))


@pytest.mark.parametrize("rows", [None, 9000, 7000])
def test_a_source_keeps_two_tensors_in_memory(tmp_path, rows):
    values = np.random.default_rng(0).standard_normal((8192, 256)).astype(np.float32)
    tensor = store(tmp_path, values, [Span.all_of(Region.whole(values.shape))], "F32")
    stored = [names.EMBEDDING, names.HEAD, f"exp_avg.{names.HEAD}", f"exp_avg.{names.EMBEDDING}"]
    model = TransformerConfig(
        vocab_size=8192,
        num_layers=1,
        num_attention_heads=4,
        hidden_size=256,
        seq_length=8,
        untie_embeddings_and_output_weights=True,
    )
    source = Source(Catalog(dict.fromkeys(stored, tensor)), gpt_spec(model), rows)
    limit = 2 * (rows or 8192) * 256 * 4 + CHUNK_BYTES + 200_000
    with source.reader:
        tracemalloc.start()
        written = None  # a writer holds one while the next one is read
        for key in stored:
            written = source.read(
                key.removeprefix("exp_avg."), "exp_avg" if "exp_avg" in key else ""
            )
        assert written is not None
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        for kind, last in (("", values[-1]), ("exp_avg", 0)):
            flat = source.read(names.HEAD, kind).reshape(-1, 256)
            np.testing.assert_array_equal(flat[:7000], values[:7000])
            assert (flat[8192:] == last).all()
    assert peak < limit


def test_numbers_below_zero_are_counted_in_every_type():
    numbers = np.array([1.0, -1.0, 0.0, -0.0, np.nan, -np.inf, np.inf, -1e-30] * 9000, np.float32)
    for dtype in ("F32", "F64", "BF16"):
        assert dtypes.count_negative(dtypes.convert(numbers, "F32", dtype), dtype) == 3 * 9000
    half = dtypes.convert(numbers, "F32", "F16")  # -1e-30 is -0 there
    assert dtypes.count_negative(half, "F16") == 2 * 9000
    assert dtypes.count_negative(np.array([-1], np.int64), "I64") == 0
