# SPDX-License-Identifier: Apache-2.0
"""Which rank says what has gone wrong, when several ranks have met the same mistake."""

from __future__ import annotations

import time

import numpy as np

from mindspeed_ms.backend import comm, device, memory, spokesman

_TAG = 7001
"""Of these messages: no other transfer within all ranks has it."""

_MESSAGE_BYTES = 2048
"""What is compared of a message."""

_PATIENCE_SECONDS = 2.0
"""So much later than rank 0 the others meet a mistake that they all make."""


def is_told_elsewhere(message: str) -> bool:
    """Whether another rank tells a message that this rank has for the user too.

    While ranks have not found each other yet (a wrong command line), the first one of each host
    speaks. Later rank 0 speaks for all of its host that have the same message, or one that repeats
    it; the first rank of another host, whose launcher nobody else reaches, a rank that has
    something else to say, and one that waits for rank 0 in vain, speak for themselves. On Ascend
    every rank does.

    Parallelism: called by any ranks whose run ends, together or alone.
    """
    if not comm.is_initialized():
        return spokesman.is_told_by_another()
    if comm.get_world_size() == 1 or device.is_ascend():
        return False
    own = message.encode()[:_MESSAGE_BYTES]
    text = np.frombuffer(own.ljust(_MESSAGE_BYTES), np.int32).copy()
    if comm.get_rank() == 0:
        for peer in range(1, comm.get_world_size()):
            comm.isend(memory.from_numpy(text), peer, tag=_TAG)
        return False
    if comm.get_local_rank() == 0:
        return False
    arrival = comm.irecv(memory.from_numpy(text), 0, tag=_TAG)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not arrival.is_completed():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return text.tobytes().rstrip() in own
