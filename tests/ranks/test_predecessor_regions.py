# SPDX-License-Identifier: Apache-2.0
"""The predecessor's region cells on two ranks: values and gradients against numpy."""

import numpy as np
import pytest
from mindspore import Tensor, ops
from mindspore.common.api import _pynative_executor

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core import tensor_parallel as tp
from mindspeed_ms.core.parallel_state import initialize_model_parallel

RANKS = 2


@pytest.fixture(autouse=True)
def tape_is_off():
    """As in a script's own process, whatever ran here before."""
    _pynative_executor.set_grad_flag(False)


def drawn(name, rank, shape):
    seed = [*name.encode(), rank]
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cut(whole, rank, dim):
    return np.split(whole, RANKS, dim)[rank]


def joined(parts, dim):
    return np.concatenate(parts, dim)


def scatter(every, rank, dim=0):
    return cut(every[rank], rank, dim)


def gather(every, _rank, dim=0):
    return joined(every, dim)


def reduce_scatter(every, rank):
    return cut(sum(every), rank, 0)


def shared_channels(every, rank):
    return joined([cut(one, rank, 1) for one in every], 0)


def shared_tokens(every, rank):
    return joined([cut(one, rank, 0) for one in every], 1)


SUM = (lambda every, _rank: sum(every), lambda every, rank: every[rank])
LAST = (lambda every, rank: scatter(every, rank, -1), lambda every, rank: gather(every, rank, -1))
BLOCKS = (lambda every, rank: joined([cut(one, rank, 0) for one in every], 0),) * 2

CASES = {
    "CopyToModelParallelRegion": ((4, 6), (4, 6), SUM[::-1]),
    "ReduceFromModelParallelRegion": ((4, 6), (4, 6), SUM),
    "ScatterToModelParallelRegion": ((4, 6), (4, 3), LAST),
    "GatherFromModelParallelRegion": ((4, 6), (4, 12), LAST[::-1]),
    "ScatterToSequenceParallelRegion": ((4, 3), (2, 3), (scatter, gather)),
    "GatherFromSequenceParallelRegion": ((4, 3), (8, 3), (gather, reduce_scatter)),
    "ReduceScatterToSequenceParallelRegion": ((4, 3), (2, 3), (reduce_scatter, gather)),
    "AllToAll": ((4, 3), (4, 3), BLOCKS),
    "AllToAllSP2HP": ((3, 4), (6, 2), (shared_channels, shared_tokens)),
    "AllToAllHP2SP": ((6, 2), (3, 4), (shared_tokens, shared_channels)),
}
"""Name -> (shape of the input, of the output, forward and backward of all ranks')."""


def crossing_worker():
    _pynative_executor.set_grad_flag(False)
    parallel_state.destroy_model_parallel()
    comm.init_process_group()
    initialize_model_parallel(tensor_model_parallel_size=RANKS)
    rank = comm.get_rank()
    for name, (before, after, (forward, backward)) in CASES.items():
        cell = getattr(tp, name)()
        inputs = [drawn(name, one, before) for one in range(RANKS)]
        weights = [drawn(name + "w", one, after) for one in range(RANKS)]
        weight = Tensor(weights[rank])
        gradient = ops.value_and_grad(lambda x, c=cell, w=weight: (c(x) * w).sum())
        np.testing.assert_allclose(
            cell(Tensor(inputs[rank])).asnumpy(), forward(inputs, rank), rtol=1e-5, err_msg=name
        )
        _, grad = gradient(Tensor(inputs[rank]))
        np.testing.assert_allclose(grad.asnumpy(), backward(weights, rank), rtol=1e-5, err_msg=name)
    second = tp.GatherFromSequenceParallelRegion(True, tensor_parallel_output_grad=False)
    parts = [drawn("swapped", one, (3, 2, 5)) for one in range(RANKS)]
    np.testing.assert_array_equal(second(Tensor(parts[rank])).asnumpy(), joined(parts, 1))
    uneven = tp.AllToAll(None, (rank + 1,) * RANKS, (1, 2))
    rows = [drawn("uneven", one, (3, 2)) for one in range(RANKS)]
    expected = joined([one[:1] if rank == 0 else one[1:] for one in rows], 0)
    np.testing.assert_array_equal(uneven(Tensor(rows[rank])).asnumpy(), expected)
    with pytest.raises(ValueError, match="3 rows go to 2 ranks"):
        tp.AllToAll()(Tensor(rows[rank]))
    return len(CASES)


def test_crossings_and_their_gradients(dist_run):
    assert dist_run(crossing_worker, ranks=RANKS) == [len(CASES)] * RANKS
