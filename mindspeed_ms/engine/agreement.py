# SPDX-License-Identifier: Apache-2.0
"""Whether all ranks of a job mean the same run: configuration, package, kernels and data.

A rank that was started with other settings computes something else, and nothing would say so.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import mindspeed_ms
from mindspeed_ms import ops
from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig, DatasetConfig
from mindspeed_ms.config.beside import DATA_SUFFIXES, READ_BY_SECTION
from mindspeed_ms.engine.datasets import get_blend_and_blend_per_split

Facts = dict[str, str]

_MAY_DIFFER = {
    "dataset_config": {
        *READ_BY_SECTION[DatasetConfig.NAME],
        "data_cache_path",
        "num_workers",
        "num_dataset_builder_threads",
        "mmap_bin_files",
        "object_storage_cache_path",
    },
    "training_config": {
        "logging_level",
        "tensorboard_dir",
        "log_file",
        "wandb_save_dir",
        "profile_save_path",
        "profile_dynamic_profiler_config_path",
    },
}
"""Settings of a host's own: where its disks are, how it reads and reports. Of data and tokenizer
the contents are compared instead of the paths."""
_WHOLE = 64 << 20
"""Bytes up to which a file is read whole; of larger ones so many blocks are."""
_NUM_BLOCKS, _BLOCK = 256, 64 << 10
_MOST_SHOWN = 8
_SPLITS = ("train data", "validation data", "test data")


def require_agreement(config: AllConfig) -> None:
    """Compare the ranks' views of the run, before anything depends on them.

    Raises:
        ValueError: they differ; the message names the fields, values, ranks and hosts, and is the
            same on all ranks.

    Parallelism: collective over the world.
    """
    if comm.get_world_size() == 1:
        return
    settings, files = configuration_facts(config), Facts()
    if comm.get_local_rank() == 0:  # the files of a host are read once
        files = data_facts(config.dataset_config)
    digests = comm.all_gather_object((_digest(settings), _digest(files) if files else None))
    if len({one for one, _ in digests}) == 1 and len({one for _, one in digests if one}) <= 1:
        return
    views = comm.all_gather_object((platform.node(), settings | files))
    lines = differences(views)
    if lines:
        shown = "; ".join(lines[:_MOST_SHOWN])
        more = f"; and {len(lines) - _MOST_SHOWN} more" if len(lines) > _MOST_SHOWN else ""
        raise ValueError(
            f"the ranks of this job do not agree: {shown}{more}; start every host with the same "
            "command, the same version and the same data"
        )


def _digest(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def configuration_facts(config: AllConfig) -> Facts:
    """What decides the numbers, apart from files: resolved settings, versions, kernels."""
    facts = {
        f"{section}.{name}": repr(value)
        for section, values in config.to_dict().items()
        for name, value in values.items()
        if name not in _MAY_DIFFER.get(section, ())
    }
    facts["mindspeed_ms"] = f"version {mindspeed_ms.__version__}"
    facts["mindspore"] = f"version {importlib.metadata.version('mindspore')}"
    facts["kernels"] = ops.report().replace("\n", ", ")
    return facts


def data_facts(dataset: DatasetConfig) -> Facts:
    """Size and content of the files a run reads; what is not on this host is left out.

    Raises:
        ValueError: the data is named in two ways.
    """
    blend, per_split = get_blend_and_blend_per_split(dataset)
    blends = {"data": blend} if per_split is None else dict(zip(_SPLITS, per_split, strict=True))
    facts = {"data is named for": ", ".join(name for name, one in blends.items() if one) or "none"}
    for name, one in blends.items():
        prefixes, weights = ([], None) if one is None else one
        facts[f"{name}: number of corpora"] = str(len(prefixes))
        facts[f"{name}: weights"] = str(weights)
        for number, prefix in enumerate(prefixes):
            facts |= _file_facts(f"{name} {number}", Path(prefix), DATA_SUFFIXES)
    for name in ("tokenizer_model", "vocab_file", "merge_file"):
        path = getattr(dataset, name)
        if path is not None:
            facts |= _file_facts(name, Path(path), ("",))
    return facts


def _file_facts(name: str, path: Path, suffixes: Sequence[str]) -> Facts:
    """Facts of those files that exist."""
    facts = {}
    for suffix in suffixes:
        file = path.with_name(path.name + suffix)
        if file.is_file():
            status = file.stat()
            content = content_of(file, status.st_size, status.st_mtime_ns)
            facts[f"{name}{suffix}"] = f"{status.st_size} bytes with checksum {content:08x}"
    return facts


@functools.lru_cache(maxsize=256)
def content_of(file: Path, size: int, changed: int) -> int:
    """CRC-32 of a file, or of blocks spread over a large one.

    Args:
        file: its path.
        size: its size in bytes.
        changed: its time of change, so that a changed file is read again.
    """
    del changed
    checksum = 0
    with file.open("rb") as handle:
        if size <= _WHOLE:
            while block := handle.read(1 << 20):
                checksum = zlib.crc32(block, checksum)
            return checksum
        for number in range(_NUM_BLOCKS):
            handle.seek((size - _BLOCK) * number // (_NUM_BLOCKS - 1))
            checksum = zlib.crc32(handle.read(_BLOCK), checksum)
    return checksum


def differences(views: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """What ranks disagree about, one text for each field.

    Args:
        views: (host, facts) of every rank; a rank without a fact has no say in it.
    """
    names = dict.fromkeys(name for _, facts in views for name in facts)
    lines = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for rank, (_, facts) in enumerate(views):
            if name in facts:
                holders.setdefault(facts[name], []).append(rank)
        if len(holders) > 1:
            values = (f"{value} on {_places(ranks, views)}" for value, ranks in holders.items())
            lines.append(f"{name} is {' and '.join(values)}")
    return lines


def _places(ranks: Sequence[int], views: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    hosts = ", ".join(dict.fromkeys(views[rank][0] for rank in ranks))
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown} ({hosts})"
