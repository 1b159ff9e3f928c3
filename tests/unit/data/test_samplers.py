# SPDX-License-Identifier: Apache-2.0
"""Order of samples over data-parallel ranks, and the loader that reads them."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_ms.data import samplers
from mindspeed_ms.data.builder import build_train_valid_test_datasets
from mindspeed_ms.data.gpt_dataset import GPTDatasetConfig, TokenizerInfo
from mindspeed_ms.data.loader import (
    LoaderSettings,
    PretrainingDataLoader,
)
from mindspeed_ms.data.pretraining_loader import build_pretraining_data_loader
from mindspeed_ms.data.samplers import (
    MegatronPretrainingRandomSampler,
    MegatronPretrainingSampler,
    randperm,
)
from mindspeed_ms.engine.micro_batches import EndlessLoader, Position

GOLDEN = Path(__file__).parents[2] / "data" / "golden"


class Numbers:
    """A dataset whose sample i holds i; fails at one number and counts its reads."""

    def __init__(self, length, failing=None):
        self._length = length
        self._failing = failing
        self.num_reads = 0

    def __len__(self):
        return self._length

    def __getitem__(self, idx):
        self.num_reads += 1
        if idx == self._failing:
            raise KeyError(f"sample {idx} is broken")
        return {"number": np.array([idx])}


def numbers_of(loader):
    return [batch["number"].ravel().tolist() for batch in loader]


def read_ahead_threads():
    return [thread for thread in threading.enumerate() if thread.name == "data-read-ahead"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert read_ahead_threads() == []


# ---- against Megatron ----


@pytest.fixture(scope="module")
def reference_dataset(tmp_path_factory):
    prefix = str(GOLDEN / "corpus_text_document")
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=64,
        tokenizer=TokenizerInfo(vocab_size=505, eod=502, eos=2, pad=504),
        blend=([prefix], None),
        split="100,0,0",
        path_to_cache=str(tmp_path_factory.mktemp("cache")),
    )
    return build_train_valid_test_datasets(config, (160, 0, 0))[0]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("data_parallel_size", [1, 2, 4])
def test_micro_batches_equal_the_reference(reference_dataset, data_parallel_size, num_workers):
    reference = np.load(GOLDEN / "batches_a_gpt2_rank0.npz")
    for rank in range(data_parallel_size):
        settings = LoaderSettings(
            micro_batch_size=2,
            data_parallel_rank=rank,
            data_parallel_size=data_parallel_size,
            num_workers=num_workers,
        )
        loader = build_pretraining_data_loader(reference_dataset, 0, settings=settings)
        batches = iter(loader)
        # Micro-batch k of a rank holds samples (k * dp + rank) * 2 and the next one.
        for step in range(rank, 80, data_parallel_size):
            batch = next(batches)
            assert set(batch) == set(reference.files)
            for name in reference.files:
                expected = reference[name][step]
                assert batch[name].dtype == expected.dtype
                assert batch[name].tobytes() == expected.tobytes(), (name, step)
        assert loader.consumed_samples == 160
        batches.close()


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]),
        (1, [5, 6, 1, 2, 0, 8, 9, 3, 7, 4]),
        (42, [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]),
    ],
)
def test_randperm_equals_torch(seed, expected, monkeypatch):
    assert randperm(10, seed).tolist() == expected
    monkeypatch.setattr(samplers, "native_indices", lambda: None)
    assert randperm(10, seed).tolist() == expected


def test_randperm_of_nothing_and_one():
    assert randperm(0, 0).tolist() == []
    assert randperm(1, 0).tolist() == [0]


def test_a_large_randperm_without_the_compiled_helper_is_refused(monkeypatch):
    monkeypatch.setattr(samplers, "native_indices", lambda: None)
    with pytest.raises(ValueError, match="--dataloader-type single"):
        randperm(2**28, 0)


# ---- single ----


def literal_single(total, consumed, micro, rank, size, drop_last):
    """Collect samples one by one; a full block gives this rank its slice."""
    batches, block = [], []
    for number in range(consumed, total):
        block.append(number)
        if len(block) == micro * size:
            batches.append(block[rank * micro : (rank + 1) * micro])
            block = []
    if block and not drop_last:
        batches.append(block[rank * micro : (rank + 1) * micro])
    return batches


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_single_sampler_equals_the_literal_rule(data):
    total = data.draw(st.integers(1, 60))
    consumed = data.draw(st.integers(0, total - 1))
    micro, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    rank = data.draw(st.integers(0, size - 1))
    drop_last = data.draw(st.booleans())
    sampler = MegatronPretrainingSampler(total, consumed, micro, rank, size, drop_last)
    assert list(sampler) == literal_single(total, consumed, micro, rank, size, drop_last)
    assert len(sampler) == total


@settings(max_examples=100, deadline=None)
@given(
    stop=st.integers(0, 9), micro=st.integers(1, 3), size=st.integers(1, 4), later=st.integers(1, 4)
)
def test_resuming_reads_each_sample_once(stop, micro, size, later):
    """Also when the number of data-parallel ranks changes at the stop."""
    total = 10 * micro * size
    consumed = stop * micro * size
    before = [MegatronPretrainingSampler(total, 0, micro, r, size) for r in range(size)]
    after = [MegatronPretrainingSampler(total, consumed, micro, r, later) for r in range(later)]
    seen = [n for sampler in before for batch in list(sampler)[:stop] for n in batch]
    seen += [n for sampler in after for batch in sampler for n in batch]
    rest = (total - consumed) % (micro * later)
    assert sorted(seen) == list(range(total - rest))


# ---- cyclic ----


def literal_cyclic(total, consumed, micro, rank, size, data_sharding):
    """One pass, as megatron.md's rule states it."""
    active = total - total % (micro * size)
    epoch, done = consumed // active, consumed % active
    if data_sharding:
        bucket = (total // (micro * size)) * micro
        order = [rank * bucket + x for x in randperm(bucket, epoch).tolist()[done // size :]]
    else:
        order = randperm((total // micro) * micro, epoch).tolist()[done:][rank::size]
    return [order[i : i + micro] for i in range(0, len(order), micro) if i + micro <= len(order)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_cyclic_sampler_equals_the_literal_rule(data):
    micro, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    total = data.draw(st.integers(micro * size, 80))
    rank = data.draw(st.integers(0, size - 1))
    consumed = data.draw(st.integers(0, 30)) * micro * size
    sharding = data.draw(st.booleans())
    sampler = MegatronPretrainingRandomSampler(None, total, consumed, micro, rank, size, sharding)
    expected = literal_cyclic(total, consumed, micro, rank, size, sharding)
    assert list(sampler) == expected
    assert sampler.consumed_samples == consumed + len(expected) * micro * size
    assert len(sampler) == total


@pytest.mark.parametrize("sharding", [True, False])
def test_cyclic_pass_reads_each_sample_at_most_once(sharding):
    ranks = [MegatronPretrainingRandomSampler(None, 50, 0, 2, r, 4, sharding) for r in range(4)]
    seen = [number for sampler in ranks for batch in sampler for number in batch]
    assert len(seen) == len(set(seen)) == 48
    assert [list(sampler) for sampler in ranks] != [[] for _ in ranks]  # the next pass


# ---- bad sizes ----


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 0, 1, 0, 1), "the dataset has 0 samples"),
        ((8, 0, 0, 0, 1), "micro_batch_size .0."),
        ((8, 0, 1, 0, 0), "data_parallel_size .0."),
        ((8, 0, 1, 2, 2), "data_parallel_rank .2."),
        ((8, 0, 1, -1, 2), "data_parallel_rank .-1."),
    ],
)
def test_bad_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        MegatronPretrainingSampler(*sizes)
    with pytest.raises(ValueError, match=message):
        MegatronPretrainingRandomSampler(None, *sizes, True)


def test_nothing_left_is_refused():
    with pytest.raises(ValueError, match="consumed_samples .8. must be less than the 8"):
        MegatronPretrainingSampler(8, 8, 1, 0, 1)
    with pytest.raises(ValueError, match="7 samples are fewer than one micro-batch"):
        MegatronPretrainingRandomSampler(None, 7, 0, 2, 0, 4, True)


def test_a_cyclic_stop_inside_a_block_is_refused():
    with pytest.raises(ValueError, match="stops inside a block"):
        MegatronPretrainingRandomSampler(None, 40, 3, 2, 0, 2, True)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="'batch' is unknown"):
        LoaderSettings(micro_batch_size=1, dataloader_type="batch")
    with pytest.raises(ValueError, match="num_workers .-1."):
        LoaderSettings(micro_batch_size=1, num_workers=-1)


# ---- loader ----


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_loader_yields_stacked_batches_and_counts_them(num_workers):
    sampler = MegatronPretrainingSampler(20, 4, 2, 1, 2)
    loader = PretrainingDataLoader(Numbers(20), sampler, num_workers)
    assert loader.consumed_samples == 4
    batches = iter(loader)
    assert next(batches)["number"].tolist() == [[6], [7]]
    assert loader.consumed_samples == 8
    assert [b["number"].ravel().tolist() for b in batches] == [[10, 11], [14, 15], [18, 19]]
    assert loader.consumed_samples == 20
    assert numbers_of(loader)[0] == [2, 3]  # the next pass is a whole one


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cyclic_loader_goes_on_where_it_was_left(num_workers):
    def make(consumed):
        sampler = MegatronPretrainingRandomSampler(None, 23, consumed, 2, 0, 2, True)
        return PretrainingDataLoader(Numbers(23), sampler, num_workers)

    loader = make(0)
    whole = numbers_of(loader) + numbers_of(loader)
    assert (len(whole), loader.consumed_samples) == (10, 40)
    stopped = make(0)
    batches = iter(stopped)
    part = [next(batches)["number"].ravel().tolist() for _ in range(3)]
    batches.close()
    assert stopped.consumed_samples == 12
    assert part + numbers_of(stopped) + numbers_of(stopped) == whole
    assert part + numbers_of(make(12)) == whole[:5]


def test_reading_ahead_is_bounded_and_happens_in_the_background():
    dataset = Numbers(100)
    loader = PretrainingDataLoader(dataset, MegatronPretrainingSampler(100, 0, 1, 0, 1), 2)
    batches = iter(loader)
    next(batches)
    deadline = time.monotonic() + 5
    while dataset.num_reads < 5 and time.monotonic() < deadline:
        threading.Event().wait(0.005)
    threading.Event().wait(0.05)
    assert dataset.num_reads == 5  # one delivered, and two for each of two threads
    assert loader.consumed_samples == 1
    batches.close()


def test_an_error_arrives_after_the_batches_before_it_with_its_cause():
    sampler = MegatronPretrainingSampler(10, 0, 1, 0, 1)
    batches = iter(PretrainingDataLoader(Numbers(10, failing=2), sampler, 2))
    assert [next(batches)["number"].item() for _ in range(2)] == [0, 1]
    with pytest.raises(RuntimeError, match="sample 2 is broken") as caught:
        next(batches)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(StopIteration):
        next(batches)


def test_closing_the_loader_ends_its_threads():
    loader = PretrainingDataLoader(Numbers(50), MegatronPretrainingSampler(50, 0, 1, 0, 1), 2)
    first, second = iter(loader), iter(loader)
    next(first), next(second)
    assert len(read_ahead_threads()) == 4
    loader.close()
    assert read_ahead_threads() == []
    assert list(first) == []


def test_dropping_the_iterator_ends_its_thread():
    loader = PretrainingDataLoader(Numbers(50), MegatronPretrainingSampler(50, 0, 1, 0, 1), 2)
    batches = iter(loader)
    next(batches)
    del batches
    assert read_ahead_threads() == []


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_come_in_order_however_long_each_takes(num_workers):
    class Uneven(Numbers):
        def __getitem__(self, idx):
            threading.Event().wait(0.003 * (idx % 3))
            return super().__getitem__(idx)

    sampler = MegatronPretrainingSampler(20, 0, 1, 0, 1)
    loader = PretrainingDataLoader(Uneven(20), sampler, num_workers)
    assert [batch["number"].item() for batch in loader] == list(range(20))


def test_several_threads_read_side_by_side():
    barrier = threading.Barrier(3, timeout=10)

    class Waiting(Numbers):
        def __getitem__(self, idx):
            barrier.wait()  # passes only when three reads are under way at once
            return super().__getitem__(idx)

    loader = PretrainingDataLoader(Waiting(6), MegatronPretrainingSampler(6, 0, 1, 0, 1), 3)
    assert [batch["number"].item() for batch in loader] == list(range(6))


def test_a_failing_sampler_is_reported_at_the_reader():
    class Failing(MegatronPretrainingSampler):
        def batches(self, consumed_samples):
            yield [0]
            raise ValueError("no more numbers")

    batches = iter(PretrainingDataLoader(Numbers(4), Failing(4, 0, 1, 0, 1), 2))
    assert next(batches)["number"].item() == 0
    with pytest.raises(RuntimeError, match="no more numbers"):
        next(batches)


# ---- stop and resume ----


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_sample_is_skipped_or_seen_twice_when_sizes_change_on_resume(data):
    """Runs of random length, each with its own sizes, read one pass in order between them."""
    total = data.draw(st.integers(1, 120))
    consumed, seen = 0, []
    while True:
        micro, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
        block = micro * size
        if consumed + block > total:
            break
        steps = data.draw(st.integers(1, (total - consumed) // block))
        options = [
            LoaderSettings(
                micro_batch_size=micro, data_parallel_rank=r, data_parallel_size=size, num_workers=0
            )
            for r in range(size)
        ]
        loaders = [
            build_pretraining_data_loader(Numbers(total), consumed, settings=one) for one in options
        ]
        readers = [iter(loader) for loader in loaders]
        for _ in range(steps):
            for reader in readers:
                seen += next(reader)["number"].ravel().tolist()
        consumed += steps * block
        assert all(loader.consumed_samples == consumed for loader in loaders)
    assert sorted(seen) == list(range(consumed))


@pytest.mark.parametrize("sharding", [True, False])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_cyclic_run_resumes_where_it_stopped(sharding, data):
    micro, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    total = data.draw(st.integers(micro * size, 40))
    stop = data.draw(st.integers(0, 20))
    options = LoaderSettings(
        micro_batch_size=micro,
        data_parallel_size=size,
        data_parallel_rank=size - 1,
        dataloader_type="cyclic",
        data_sharding=sharding,
        num_workers=0,
    )

    def stream(consumed, count):
        loader = build_pretraining_data_loader(Numbers(total), consumed, settings=options)
        result = []
        while len(result) < count:
            for batch in loader:
                result.append(batch["number"].ravel().tolist())
                if len(result) == count:
                    break
        return result

    whole = stream(0, stop + 10)
    assert stream(stop * micro * size, 10) == whole[stop:]


@pytest.mark.parametrize("drop_remainder", [True, False])
def test_a_run_of_several_passes_resumes_where_it_stopped(drop_remainder):
    options = LoaderSettings(micro_batch_size=4, num_workers=0, drop_remainder=drop_remainder)

    def stream(start, stop):
        """Samples, pass and place in it, after every micro-batch."""
        loader = build_pretraining_data_loader(Numbers(10), 4 * start, settings=options)
        reader = EndlessLoader(loader, Position(samples=4 * start, block=4))
        return [
            (next(reader)["number"].ravel().tolist(), reader.epoch, reader.batches_in_epoch)
            for _ in range(start, stop)
        ]

    whole = stream(0, 9)
    assert whole[-1] == (([0, 1, 2, 3], 4, 1) if drop_remainder else ([8, 9], 2, 3))
    for stop in range(1, 9):
        assert stream(stop, 9) == whole[stop:]


def test_a_dataset_shorter_than_the_run_is_read_again_from_its_beginning():
    options = LoaderSettings(micro_batch_size=2, num_workers=0)
    loader = build_pretraining_data_loader(Numbers(7), 4, settings=options)
    assert numbers_of(loader) == [[4, 5]]
    assert numbers_of(loader) == [[0, 1], [2, 3], [4, 5]]
    assert loader.consumed_samples == 12
    resumed = build_pretraining_data_loader(Numbers(7), 12 + 2, settings=options)
    assert numbers_of(resumed) == [[2, 3], [4, 5]]


# ---- Megatron's entry ----


def test_no_dataset_gives_no_loader():
    assert (
        build_pretraining_data_loader(None, 0, settings=LoaderSettings(micro_batch_size=1)) is None
    )


def test_cyclic_and_external_loaders():
    cyclic = LoaderSettings(micro_batch_size=5, dataloader_type="cyclic")
    assert numbers_of(build_pretraining_data_loader(Numbers(10), 0, settings=cyclic)) == [
        [4, 1, 7, 5, 3],
        [9, 0, 8, 6, 2],
    ]
    external = LoaderSettings(micro_batch_size=5, dataloader_type="external")
    batches = iter([{"number": np.arange(5)}])
    assert build_pretraining_data_loader(batches, 0, settings=external) is batches
    with pytest.raises(ValueError, match=r"numbered samples \(Numbers\).*--dataloader-type single"):
        build_pretraining_data_loader(Numbers(10), 0, settings=external)
