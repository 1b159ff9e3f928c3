# SPDX-License-Identifier: Apache-2.0
"""MindSpore's own communication, where a script has started it before ours.

``mindspore.communication.init()`` in a script is its way to say that there are ranks. On Ascend
that is HCCL, which ours is, too. On CPU it is MindSpore's own, whose scheduler then holds the port
of ``msrun``: rank 0 serves our job beside it, and tells the others where through MindSpore. Groups
get a namesake there, so that the script's own ``ops.AllReduce(group=...)`` works on them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from mindspore import Tensor, communication, ops

_MOST_BYTES = 4096


def is_started() -> bool:
    """Whether the script has called ``mindspore.communication.init()``."""
    return bool(communication.GlobalComm.INITED)


def place() -> tuple[int, int]:
    """(rank, number of ranks) as MindSpore counts them."""
    return communication.get_rank(), communication.get_group_size()


def from_first(document: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """What rank 0 gives, on every rank (collective).

    Args:
        document: plain data of rank 0, at most 4 KB as JSON; the others' is ignored.
    """
    rank, size = place()
    if size == 1:
        return document
    text = json.dumps(document).encode() if rank == 0 else b""
    if len(text) > _MOST_BYTES:
        raise ValueError(f"{len(text)} bytes are more than the {_MOST_BYTES} of a greeting")
    sent = np.zeros(_MOST_BYTES, np.float32)  # the one type MindSpore adds up on CPU
    sent[: len(text)] = np.frombuffer(text, np.uint8)
    received = ops.AllReduce()(Tensor(sent)).asnumpy().astype(np.uint8).tobytes()
    return json.loads(received.rstrip(b"\0"))


def name_group(name: str, ranks: tuple[int, ...]) -> None:
    """Let MindSpore know a group of this rank by its name; the world has one already."""
    if name != communication.GlobalComm.WORLD_COMM_GROUP:
        communication.create_group(str(name), list(ranks))
