# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint is loaded: the first rank decides, all follow, and each says what it sees.

Ranks that looked for themselves would take different checkpoints where a folder is not shared, or
while one of them is being copied.
"""

from __future__ import annotations

import platform
import zlib
from pathlib import Path

from mindspeed_ms.backend import comm
from mindspeed_ms.core.dist_checkpointing.shared_folders import first_rank_decides
from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.find import Found, find_checkpoint, open_checkpoint
from mindspeed_ms.formats.names import Describe


def find_together(path: Path, step: int | None = None) -> Found | None:
    """``find_checkpoint`` of the first rank.

    Raises:
        OnlyTornError: no run has completed a checkpoint yet.
        ValueError: see ``find_checkpoint``.

    Parallelism: collective over the world.
    """
    return first_rank_decides(lambda: find_checkpoint(path, step))


def open_together(found: Found, describe: Describe) -> Catalog:
    """``open_checkpoint`` on every rank, and the certainty that all see the same.

    Raises:
        ValueError: it cannot be read, or is another one, on some rank; the message names the first
            such rank, its host, and what is missing there.

    Parallelism: collective over the world.
    """
    catalog, problem = Catalog({}), ""
    try:
        catalog = open_checkpoint(found, describe)
    except (ValueError, OSError) as error:
        problem = str(error)
    view = (problem, _fingerprint(catalog), platform.node())
    everyones = comm.all_gather_object(view) if comm.get_world_size() > 1 else [view]
    problems = {rank: item[0] for rank, item in enumerate(everyones) if item[0]}
    if len(problems) == len(everyones):
        raise ValueError(everyones[0][0])
    for rank, (text, fingerprint, host) in enumerate(everyones):
        if text or fingerprint != everyones[0][1]:
            what = text or f"{found.folder} holds another checkpoint there than on rank 0"
            raise ValueError(
                f"rank {rank} on host {host}: {what} (rank 0 on host {everyones[0][2]} reads it; "
                "the folder of a checkpoint must be shared by all hosts, or be copied to each)"
            )
    return catalog


def _fingerprint(catalog: Catalog) -> int:
    """Differs where two catalogs do, as far as a start may cost."""
    seal = zlib.crc32(repr((catalog.common.get("seal"), len(catalog.tensors))).encode())
    for name, tensor in catalog.tensors.items():
        head = (name, tensor.shape, tensor.dtype, tensor.digest, len(tensor.pieces))
        places = [(piece.offset, piece.path.name) for piece in tensor.pieces[:4]]
        seal = zlib.crc32(repr((head, places)).encode(), seal)
    return seal
