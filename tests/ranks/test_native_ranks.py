# SPDX-License-Identifier: Apache-2.0
"""Native sums and gathers over ranks that share memory, and models that go on by them."""

from __future__ import annotations

import numpy as np
import pytest
from test_generation_layouts import PP, PROMPTS, TP, built_model

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.ops.cpu import ranks
from mindspeed_ms.planning.cache import cache_bytes_per_token

pytestmark = pytest.mark.ranks
SIZES = (1, 5, ranks._BLOCK, 3 * ranks._BLOCK + 7)


def _own(rank, size):
    return np.random.default_rng(100 * rank + size % 100).standard_normal(size).astype(np.float32)


def sums_worker(turns):
    """Sums and gathers, many after one another in the same memory."""
    group = comm.world_group()
    shared = comm.shared_memory(ranks.num_bytes(group.size), group)
    again = comm.shared_memory(ranks.num_bytes(group.size), group)
    assert np.shares_memory(shared.bytes, again.bytes)
    every = ranks.ranks_of(shared.bytes, group.rank, group.size)
    found = []
    for turn in range(turns):
        for size in SIZES:
            x = _own(group.rank + turn, size)
            gathered = ranks.gathered(every, x)
            ranks.sum_over(every, x)
            found.append((x, gathered))
    return found[-len(SIZES) :]


@pytest.mark.parametrize("count", [2, 3])
def test_sums_and_gathers_are_those_of_all_ranks_in_their_order(dist_run, count):
    results = dist_run(sums_worker, ranks=count, turns=20)
    for index, size in enumerate(SIZES):
        terms = [_own(rank + 19, size) for rank in range(count)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        for found in results:
            assert (found[index][0] == total).all()
            assert (found[index][1] == np.stack(terms)).all()


def late_worker():
    """A rank that comes late finds the others asleep, and wakes them."""
    group = comm.world_group()
    shared = comm.shared_memory(ranks.num_bytes(group.size), group)
    every = ranks.ranks_of(shared.bytes, group.rank, group.size)
    x = np.ones(3, np.float32)
    for _ in range(3):
        if group.rank == 1:
            comm.barrier(comm.new_group([1]))
            np.linalg.svd(np.random.default_rng(0).standard_normal((300, 300)))
        ranks.sum_over(every, x)
    return x


def test_sleepers_are_woken(dist_run):
    for found in dist_run(late_worker, ranks=2):
        assert (found == 8.0).all()


def native_worker(model, parallel):
    """Logits of a prompt and of steps, and whether they came from the native form."""
    chunks, config = built_model(model, parallel)
    biases = 0
    for param in (param for chunk in chunks for param in chunk.get_parameters()):
        if param.name.endswith(("out_proj.bias", "projection.bias")):  # whole on every rank
            values = np.random.default_rng(len(param.name)).standard_normal(param.shape)
            memory.copy_from_host(param, values.astype(np.float32))
            biases += 1
    assert biases or model not in ("gpt2", "biased experts")
    with InferenceEngine(chunks, config.model_config) as engine:
        slots, logits = engine.add(PROMPTS)
        found = [logits.copy()]
        for _ in range(4):
            logits = engine.step(slots, logits.argmax(-1))
            found.append(logits.copy())
        tokens = engine.cache.num_slots * engine.cache.room
        assert engine.cache.num_bytes == cache_bytes_per_token(config, 0) * tokens
    parallel_state.destroy_model_parallel()
    return np.array(found), engine._may_decode and engine._decoders is not None


CUT = {TP: 2, "sequence_parallel": True}


@pytest.mark.parametrize(
    ("model", "parallel"),
    [
        ("llama", {TP: 2}),
        ("gpt2", CUT),
        ("latent", {TP: 2}),
        ("experts", CUT),
        ("biased experts", CUT),
        ("experts", {PP: 2}),
        ("gpt2", {PP: 2, "virtual_pipeline_model_parallel_size": 2}),
    ],
)
def test_tensor_parallel_ranks_and_stages_go_on_in_the_native_form(dist_run, model, parallel):
    alone, is_native = dist_run(native_worker, ranks=1, model=model, parallel={})[0]
    assert is_native
    results = dist_run(native_worker, ranks=2, model=model, parallel=parallel)
    assert (results[0][0] == results[1][0]).all()
    for found, is_native in results:
        assert is_native
        np.testing.assert_allclose(found, alone, atol=5e-5)
