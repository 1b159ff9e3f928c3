# SPDX-License-Identifier: Apache-2.0
"""Join the optimizer shards of data parallel ranks; the command line of MindSpeed-Core-MS r0.1.0.

Every rank's file holds its part of each bucket (``exp_avg.buffer_0_bucket_1``); the strategy files
say which parameter lies where in which bucket. The result is keyed by parameter and can be read
with any number of data parallel ranks.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.files.regular_file import read_json
from mindspeed_ms.formats.catalog import StoredPiece, StoredTensor, TensorReader
from mindspeed_ms.formats.containers import mindspore_file
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.mindspore_dirs import tensors_in
from mindspeed_ms.plan.region import Region, Span
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

_STRATEGY = re.compile(r"dist_opt_shard_info_rank_(\d+)-.*\.json")
_BUCKET = re.compile(r"(?:(.*)\.)?buffer_(\d+)_bucket_(\d+)$")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter lies in a bucket."""

    buffer: int
    bucket: int
    start: int
    end: int

    @classmethod
    def of(cls, value: Any) -> Place:
        """From a list of four numbers, or their names."""
        if isinstance(value, Mapping):
            names = ("buffer", "bucket", "start", "end")
            numbers = [
                next(number for key, number in value.items() if key.startswith(name))
                for name in names
            ]
            return cls(*map(int, numbers))
        return cls(*map(int, value))


@dataclass(frozen=True, slots=True)
class Strategy:
    """Strategy file of a rank."""

    ranks: tuple[int, ...]
    """Data parallel ranks in the order of their shards."""
    params: dict[str, tuple[Place, tuple[int, ...]]]


def read_strategy(path: Path) -> Strategy:
    """Read a strategy file.

    Raises:
        ValueError: it is none.
    """
    try:
        content = read_json(path)
        params = {
            name: (Place.of(item["range_map"]), tuple(item["shape"]))
            for name, item in content["param_info"].items()
        }
        return Strategy(tuple(content["dp_rank_list"]), params)
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"{path} is no strategy file ({type(error).__name__}: {error})") from None


def _file_of(folder: Path, rank: int, suffix: str) -> Path:
    found = sorted((folder / f"rank_{rank}").glob(f"*.{suffix}")) or sorted(
        folder.glob(f"*rank_{rank}-*.{suffix}")
    )
    if not found:
        raise ValueError(f"{folder} holds no .{suffix} file of rank {rank}; check --checkpoint-dir")
    return max(found, key=lambda item: item.stat().st_mtime)


def joined(strategy: Strategy, files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Tensors of a data parallel group by parameter; what is not sharded comes from the first."""
    contents = [tensors_in(path) for path in files]
    result: dict[str, StoredTensor] = {}
    kinds = {match[1] for key in contents[0] if (match := _BUCKET.match(key))}
    for kind in kinds:
        start = f"{kind}." if kind else ""
        for name, (place, shape) in strategy.params.items():
            key = f"{start}buffer_{place.buffer}_bucket_{place.bucket}"
            for path, held in zip(files, contents, strict=True):
                if key not in held:
                    raise ValueError(
                        f"{path} has no {key}, which holds {name} by the strategy files; give the "
                        "files of one checkpoint"
                    )
            pieces = _pieces(
                place, shape, [(p, c[key]) for p, c in zip(files, contents, strict=True)]
            )
            result[start + name] = StoredTensor(shape, pieces[0].dtype, pieces)
    for key, tensor in contents[0].items():
        if not _BUCKET.match(key) and key not in result:
            result[key] = _copied(files[0], tensor)
    return result


def _copied(path: Path, tensor: mindspore_file.CkptTensor) -> StoredTensor:
    region, pieces, position = Region.whole(tensor.shape), [], 0
    width = sum(s.num_bytes for s in tensor.stretches) // max(1, math.prod(tensor.shape))
    for stretch in tensor.stretches:
        count = stretch.num_bytes // max(1, width)
        span = Span(region, position, position + count)
        pieces.append(StoredPiece(span, tensor.dtype, path, stretch.offset))
        position += count
    return StoredTensor(tensor.shape, tensor.dtype, pieces)


def _pieces(
    place: Place, shape: tuple[int, ...], shards: Sequence[tuple[Path, mindspore_file.CkptTensor]]
) -> list[StoredPiece]:
    """The parts of a parameter in the shards of its bucket, which follow each other."""
    region, pieces, position = Region.whole(shape), [], 0
    for path, shard in shards:
        size = math.prod(shard.shape)
        low, high = max(place.start, position), min(place.end, position + size)
        if low < high:
            width = sum(s.num_bytes for s in shard.stretches) // size
            span = Span(region, low - place.start, high - place.start)
            offset = shard.stretches[0].offset + (low - position) * width
            pieces.append(StoredPiece(span, shard.dtype, path, offset))
        position += size
    if not pieces:
        raise ValueError(f"a parameter lies at {place.start} of a bucket of {position} numbers")
    return pieces


def _read(reader: TensorReader, tensor: StoredTensor) -> np.ndarray:
    return reader.read(tensor)


def combine(arguments: argparse.Namespace) -> int:
    """Join all groups; return the number of files written."""
    strategies = {}
    for path in sorted(arguments.strategy_dir.glob("*.json")):
        match = _STRATEGY.fullmatch(path.name)
        if match:
            strategies[int(match[1])] = read_strategy(path)
    if not strategies:
        raise ValueError(f"{arguments.strategy_dir} holds no dist_opt_shard_info_rank_*.json")
    low, high = arguments.rank_section or (0, max(strategies) + 1)
    written, done = 0, set()
    for rank, strategy in sorted(strategies.items()):
        if strategy.ranks in done or not low <= rank < high:
            continue
        done.add(strategy.ranks)
        files = [
            _file_of(arguments.checkpoint_dir, r, arguments.src_format) for r in strategy.ranks
        ]
        tensors = joined(strategy, files)
        targets = strategy.ranks if arguments.copy_to_all_dp_ranks else strategy.ranks[:1]
        for target in targets:
            _write(arguments, target, tensors)
            written += 1
    return written


def _write(arguments: argparse.Namespace, rank: int, tensors: dict[str, StoredTensor]) -> None:
    folder = arguments.output_dir / f"rank_{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"network_rank_{rank}_dp_merged.{arguments.dst_format}"
    is_state = re.compile(r"(exp_avg|exp_avg_sq)\.")
    with TensorReader() as reader:
        entries = [
            safetensors.Entry(key, tensor.dtype, tensor.shape, partial(_read, reader, tensor))
            for key, tensor in tensors.items()
            if not (arguments.no_save_optim and is_state.match(key))
        ]
        if arguments.dst_format == "ckpt":
            mindspore_file.write_file(path, entries)
        else:
            safetensors.write_file(path, entries, {"format": "ms"})


def main(argv: Sequence[str] | None = None) -> int:
    """Join; return the status."""
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add("--strategy-dir", type=Path, default=Path("./output/opt_shard_info"))
    add("--checkpoint-dir", type=Path, default=Path("./output"))
    add("--output-dir", type=Path, default=Path("./output"))
    add("--src-format", choices=("ckpt", "safetensors"), default="ckpt")
    add("--dst-format", choices=("ckpt", "safetensors"), default="ckpt")
    add("--copy-to-all-dp-ranks", action="store_true")
    add("--max-proccess-limit", type=int, default=8, help="accepted: tensors are streamed")
    add("--rank-section", type=int, nargs=2, help="first and one past the last rank")
    add("--no-save-optim", action="store_true", help="leave the optimizer out")
    arguments = parser.parse_args(argv)
    with user_errors():
        written = combine(arguments)
    sys.stdout.write(f"{written} files -> {arguments.output_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
