# SPDX-License-Identifier: Apache-2.0
"""Of several ranks with the same message one speaks."""

import pytest

from mindspeed_ms.backend import comm, failure

pytestmark = pytest.mark.ranks


def worker(messages):
    """Whether this rank leaves its message to another one; None: it has no message."""
    message = messages[comm.get_rank()]
    told = None if message is None else failure.is_told_elsewhere(message)
    comm.barrier()
    return told


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (["use 8", "use 8"], [False, True]),
        (["use 8", "rank 0 failed: use 8"], [False, True]),
        (["use 8" * 1000, "use 8" * 1000], [False, True]),
        (["use 8", "the disk is full"], [False, False]),
        ([None, "the disk is full"], [None, False]),
    ],
    ids=["same", "repeated", "long", "other", "alone"],
)
def test_one_rank_speaks_for_all(dist_run, messages, told):
    assert dist_run(worker, ranks=2, messages=messages) == told
