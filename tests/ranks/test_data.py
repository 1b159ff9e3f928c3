# SPDX-License-Identifier: Apache-2.0
"""Data on several ranks: built once, read once per tensor-parallel group, sliced."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.data import turns
from mindspeed_ms.data.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from mindspeed_ms.data.gpt_dataset import GPTDataset, GPTDatasetConfig, TokenizerInfo
from mindspeed_ms.data.loader import LoaderSettings
from mindspeed_ms.data.pretraining_loader import build_pretraining_data_loader
from mindspeed_ms.engine.micro_batches import SharedLoader

pytestmark = pytest.mark.ranks
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
PREFIX = str(GOLDEN / "corpus_text_document")


def _config(cache, **changes):
    options = {
        "random_seed": 1234,
        "sequence_length": 64,
        "tokenizer": TokenizerInfo(vocab_size=505, eod=502, eos=2, pad=504),
        "blend": ([PREFIX], None),
        "split": "100,0,0",
        "path_to_cache": cache,
    }
    return GPTDatasetConfig(**(options | changes))


def _batches(cache, tensor_ranks):
    comm.init_process_group()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor_ranks)
    rank = parallel_state.get_tensor_model_parallel_rank()
    built = BlendedMegatronDatasetBuilder(
        GPTDataset, (160, 0, 0), lambda: rank == 0, _config(cache)
    ).build()
    settings = LoaderSettings(
        micro_batch_size=2,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
    )
    loader = build_pretraining_data_loader(built[0], 0, settings=settings)
    shared = SharedLoader(loader)
    result = [next(shared) for _ in range(80 // settings.data_parallel_size)]
    counts = (shared.epoch, shared.batches_in_epoch)
    shared.close()
    return built[0] is None, settings.data_parallel_rank, counts, result


@pytest.mark.parametrize(("ranks", "tensor_ranks"), [(2, 2), (2, 1), (4, 2)])
def test_every_layout_gets_the_reference_micro_batches(dist_run, tmp_path, ranks, tensor_ranks):
    reference = np.load(GOLDEN / "batches_a_gpt2_rank0.npz")
    results = dist_run(_batches, ranks=ranks, cache=str(tmp_path), tensor_ranks=tensor_ranks)
    size = ranks // tensor_ranks
    assert [one[0] for one in results] == [i % tensor_ranks > 0 for i in range(ranks)]
    for _, data_rank, counts, batches in results:
        assert counts == (0, len(batches))
        for step, batch in enumerate(batches):
            for name in reference.files:
                expected = reference[name][step * size + data_rank]
                np.testing.assert_array_equal(batch[name], expected)
    assert len(list(tmp_path.glob("*.npy"))) == 3


class _Broken:
    def __iter__(self):
        yield {"tokens": np.array([[True, False, True]]), "more": np.zeros((1, 2), np.float32)}
        yield {"tokens": np.arange(3)[None]}
        raise OSError("the disk is gone")


def _broken():
    comm.init_process_group()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    shared = SharedLoader(_Broken() if comm.get_rank() == 0 else None)
    seen = [{name: value.tolist() for name, value in next(shared).items()} for _ in range(2)]
    try:
        next(shared)
    except Exception as error:  # noqa: BLE001  (handed to the parent)
        return seen, f"{type(error).__name__}: {error}"


def test_layouts_may_change_and_a_failing_reader_ends_all(dist_run):
    (first, mine), (second, other) = dist_run(_broken, ranks=2)
    assert (
        first
        == second
        == [
            {"tokens": [[True, False, True]], "more": [[0.0, 0.0]]},
            {"tokens": [[0, 1, 2]]},
        ]
    )
    assert mine == "OSError: the disk is gone"
    assert "rank 0, which reads the data of this tensor-parallel group, failed" in other


def _wait_for_a_slow_rank(seconds, fails):
    comm.init_process_group()
    turns.REPORT_SECONDS = 0.05
    started = time.monotonic()

    def work():
        threading.Event().wait(seconds)
        if fails:
            raise ValueError("the corpus is empty")
        return "built"

    try:
        result = turns.build_together(work if comm.get_rank() == 0 else None)
    except Exception as error:  # noqa: BLE001  (handed to the parent)
        result = f"{type(error).__name__}: {error}"
    return result, time.monotonic() - started


def test_ranks_wait_in_short_exchanges(dist_run):
    (first, _), (second, waited) = dist_run(
        _wait_for_a_slow_rank, ranks=2, seconds=0.4, fails=False
    )
    assert (first, second) == ("built", None)
    assert waited >= 0.35


def test_an_error_of_the_builder_reaches_every_rank(dist_run):
    (first, _), (second, _) = dist_run(_wait_for_a_slow_rank, ranks=2, seconds=0.0, fails=True)
    assert first == "ValueError: the corpus is empty"
    assert second == "RuntimeError: building the datasets failed on rank 0: the corpus is empty"


def _several_sets(cache):
    comm.init_process_group()
    blends = (([PREFIX], None), ([PREFIX, PREFIX], None), None)
    config = _config(
        cache, blend=None, split=None, blend_per_split=blends, multiple_validation_sets=True
    )
    built = BlendedMegatronDatasetBuilder(
        GPTDataset, (40, None, None), lambda: True, config
    ).build()
    return len(built[0]), [len(one) for one in built[1]], built[2]


def test_several_validation_sets_stay_apart(dist_run, tmp_path):
    first, second = dist_run(_several_sets, ranks=2, cache=str(tmp_path))
    assert first == second == (2062, [2062, 2062], None)


def test_three_sizes_are_needed(tmp_path):
    with pytest.raises(ValueError, match="sizes has 2 entries"):
        BlendedMegatronDatasetBuilder(GPTDataset, (1, 2), lambda: True, _config(str(tmp_path)))
