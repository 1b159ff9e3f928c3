# SPDX-License-Identifier: Apache-2.0
"""Groups of real ranks, and the getters that read them."""

import numpy as np
import pytest

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core import parallel_state as ps

pytestmark = pytest.mark.ranks


def layout_worker():
    ps.initialize_model_parallel(2, 2, context_parallel_size=1)
    ranks = {
        "tp": ps.get_tensor_model_parallel_group().ranks,
        "pp": ps.get_pipeline_model_parallel_group().ranks,
        "dp": ps.get_data_parallel_group().ranks,
        "dp_cp": ps.get_data_parallel_group(with_context_parallel=True).ranks,
        "model": ps.get_model_parallel_group().ranks,
        "embedding": ps.get_embedding_group().ranks,
        "position_embedding": ps.get_position_embedding_group().ranks,
        "tp_dp": ps.get_tensor_and_data_parallel_group().ranks,
        "tp_cp": ps.get_tensor_and_context_parallel_group().ranks,
        "expert_dp": ps.get_expert_data_parallel_group().ranks,
    }
    numbers = {
        "tp_rank": ps.get_tensor_model_parallel_rank(),
        "tp_src": ps.get_tensor_model_parallel_src_rank(),
        "pp_rank": ps.get_pipeline_model_parallel_rank(),
        "dp_rank": ps.get_data_parallel_rank(),
        "dp_src": ps.get_data_parallel_src_rank(),
        "first": ps.get_pipeline_model_parallel_first_rank(),
        "last": ps.get_pipeline_model_parallel_last_rank(),
        "next": ps.get_pipeline_model_parallel_next_rank(),
        "prev": ps.get_pipeline_model_parallel_prev_rank(),
        "is_first": ps.is_pipeline_first_stage(),
        "is_last": ps.is_pipeline_last_stage(),
        "in_embedding": ps.is_rank_in_embedding_group(),
        "sizes": (
            ps.get_tensor_model_parallel_world_size(),
            ps.get_pipeline_model_parallel_world_size(),
            ps.get_data_parallel_world_size(),
            ps.get_context_parallel_world_size(),
            ps.get_expert_model_parallel_world_size(),
            ps.get_expert_tensor_parallel_world_size(),
        ),
        "others": (
            ps.get_context_parallel_rank(),
            ps.get_expert_model_parallel_rank(),
            ps.get_expert_tensor_parallel_rank(),
            ps.get_expert_data_parallel_rank(),
        ),
    }
    sums = {}
    for role in ("tp", "pp", "dp"):
        value = memory.from_numpy(np.array([comm.get_rank()], np.float32))
        comm.all_reduce(value, group=getattr(ps, f"get_{_GETTERS[role]}")())
        sums[role] = float(memory.as_numpy(value)[0])
    return {"ranks": ranks, "numbers": numbers, "sums": sums}


_GETTERS = {
    "tp": "tensor_model_parallel_group",
    "pp": "pipeline_model_parallel_group",
    "dp": "data_parallel_group",
}


@pytest.mark.parametrize("ranks", [8])
def test_tp2_pp2_dp2(dist_run, ranks):
    for rank, result in enumerate(dist_run(layout_worker, ranks=ranks, timeout=120.0)):
        tensor, data, pipeline = rank % 2, rank // 2 % 2, rank // 4
        groups = result["ranks"]
        assert groups["tp"] == (rank - tensor, rank - tensor + 1)
        assert groups["pp"] == (rank % 4, rank % 4 + 4)
        assert groups["dp"] == groups["dp_cp"] == (rank - 2 * data, rank - 2 * data + 2)
        first = rank - tensor - 4 * pipeline
        assert groups["model"] == (first, first + 1, first + 4, first + 5)
        assert groups["embedding"] == groups["pp"]
        assert groups["tp_dp"] == tuple(range(4 * pipeline, 4 * pipeline + 4))
        assert groups["tp_cp"] == groups["tp"] and groups["expert_dp"] == groups["dp"]
        if pipeline == 0:
            assert groups["position_embedding"] == (rank,)
        numbers = result["numbers"]
        assert (numbers["tp_rank"], numbers["dp_rank"], numbers["pp_rank"]) == (
            tensor,
            data,
            pipeline,
        )
        assert numbers["tp_src"] == groups["tp"][0] and numbers["dp_src"] == groups["dp"][0]
        assert (numbers["first"], numbers["last"]) == groups["pp"]
        assert numbers["next"] == numbers["prev"] == groups["pp"][1 - pipeline]
        assert numbers["is_first"] == (pipeline == 0) and numbers["is_last"] == (pipeline == 1)
        assert numbers["in_embedding"]
        assert numbers["sizes"] == (2, 2, 2, 1, 1, 2)
        assert numbers["others"] == (0, 0, tensor, data)
        assert result["sums"] == {role: sum(groups[role]) for role in ("tp", "pp", "dp")}


def virtual_worker():
    ps.initialize_model_parallel(1, 2, virtual_pipeline_model_parallel_size=2)
    seen = []
    for chunk in (0, 1):
        ps.set_virtual_pipeline_model_parallel_rank(chunk)
        seen.append((ps.is_pipeline_first_stage(), ps.is_pipeline_last_stage()))
    sizes = (
        ps.get_virtual_pipeline_model_parallel_world_size(),
        ps.get_virtual_pipeline_model_parallel_rank(),
    )
    ignoring = (ps.is_pipeline_first_stage(True), ps.is_pipeline_last_stage(True))
    ps.set_virtual_pipeline_model_parallel_world_size(None)
    return {
        "seen": seen,
        "sizes": sizes,
        "ignoring": ignoring,
        "plain": ps.is_pipeline_first_stage(),
    }


@pytest.mark.parametrize("ranks", [2])
def test_only_the_first_chunk_of_the_first_stage_is_first(dist_run, ranks):
    first, last = dist_run(virtual_worker, ranks=ranks)
    assert first["seen"] == [(True, False), (False, False)]
    assert last["seen"] == [(False, False), (False, True)]
    assert first["sizes"] == (2, 1) and first["ignoring"] == (True, False)
    assert first["plain"] and not last["plain"]


def refusals_worker():
    messages = []

    def attempt(*args, **kwargs):
        try:
            ps.initialize_model_parallel(*args, **kwargs)
        except RuntimeError as error:
            messages.append(str(error))

    attempt(3)
    attempt(1, 1, virtual_pipeline_model_parallel_size=2)
    attempt(order="tp-tp")
    attempt(pipeline_model_parallel_split_rank=1)
    ps.initialize_model_parallel(2)
    attempt(2)
    ps.destroy_model_parallel()
    try:
        ps.get_tensor_model_parallel_rank()
    except RuntimeError as error:
        messages.append(str(error))
    return messages


@pytest.mark.parametrize("ranks", [2])
def test_layouts_that_cannot_be_are_refused(dist_run, ranks):
    parts = [
        "world size is 2",
        "need at least 2 pipeline stages",
        "only once",
        "must be None",
        "exist already",
        "do not exist yet",
    ]
    for messages in dist_run(refusals_worker, ranks=ranks):
        assert len(messages) == len(parts)
        assert all(part in message for part, message in zip(parts, messages, strict=True))


def test_groups_need_communication():
    if not comm.is_initialized():
        with pytest.raises(RuntimeError, match="communication is not initialised"):
            ps.initialize_model_parallel()
