# SPDX-License-Identifier: Apache-2.0
"""Local files of a path that a user names: rows of tokens, or a token file."""

from __future__ import annotations

import re
from pathlib import Path

from mindspeed_ms.config import AllConfig
from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.token_rows import TokenRowsDataset, is_row_file
from mindspeed_ms.engine.datasets import gpt_dataset_config

TEXT_FILES = (".txt", ".tokens", ".jsonl", ".json")
_SAVED = ("dataset_info.json", "dataset_dict.json")


def find_data(name: str, key: str) -> tuple[str, ...]:
    """The data files of a path, as ``dataset_config`` takes them.

    Args:
        name: a ``.mindrecord`` or ``.npy`` file, a text, the prefix of a ``.bin/.idx`` pair, or a
            folder that holds files of one of these kinds. One shard of a set stands for all.
        key: how the user gave it, for messages.

    Raises:
        ValueError: there is nothing of the kind, a folder mixes kinds, or a MindRecord file comes
            without its ``.db``.
    """
    path = Path(name)
    _refuse_tables(path, key)
    found = _in_folder(path, key) if path.is_dir() else _shards(path)
    for file in found:
        is_file = is_row_file(file.name) or file.suffix in TEXT_FILES
        if is_file and not file.is_file():
            raise ValueError(f"{key}: there is no file {file}; check the path")
        if not is_file and not IndexedDataset.exists(str(file)):
            raise ValueError(
                f"{key}: {file} is no folder, no .mindrecord or .npy file and no prefix of a "
                ".bin/.idx pair; check the path"
            )
        if ".mindrecord" in file.suffix and not Path(f"{file}.db").is_file():
            raise ValueError(f"{key}: {file}.db is missing beside {file}; copy both")
    return tuple(map(str, found))


def _refuse_tables(path: Path, key: str) -> None:
    """Refuse files of Hugging Face's package, which itself opens them.

    Raises:
        ValueError: it is one, or a folder that ``save_to_disk`` has written.
    """
    opens = {".parquet": "Dataset.from_parquet", ".arrow": "Dataset.from_file"}.get(path.suffix)
    if any((path / name).is_file() for name in _SAVED):
        opens = "load_from_disk"
    if opens is not None:
        raise ValueError(
            f"{key}: {path} is of Hugging Face's datasets; give datasets.{opens}({str(path)!r})"
        )


def _shards(file: Path) -> list[Path]:
    """All shards of the MindRecord set of which this is one."""
    match = re.fullmatch(r"(.*\.mindrecord)\d+", file.name)
    if match is None or not file.parent.is_dir():
        return [file]
    shards = [
        path
        for path in file.parent.iterdir()
        if re.fullmatch(re.escape(match[1]) + r"\d+", path.name)
    ]
    return sorted(shards, key=_number) or [file]


def _number(path: Path) -> tuple[str, int]:
    """Name and number of a shard: 10 comes behind 9."""
    match = re.fullmatch(r"(.*?)(\d*)", path.name)
    assert match is not None, "everything matches"
    return match[1], int(match[2] or 0)


def _in_folder(folder: Path, key: str) -> list[Path]:
    kinds = {
        ".mindrecord": [p for p in folder.glob("*.mindrecord*") if is_row_file(p.name)],
        ".npy": list(folder.glob("*.npy")),
        ".bin/.idx": [path.with_suffix("") for path in folder.glob("*.idx")],
        "text": [p for p in folder.iterdir() if p.suffix in TEXT_FILES and p.is_file()],
    }
    present = {kind: sorted(paths, key=_number) for kind, paths in kinds.items() if paths}
    if len(present) > 1:
        present.pop("text", None)  # notes beside the data
    if len(present) != 1:
        what = " and ".join(present) or "no .mindrecord file, no .npy file, no .bin/.idx pair"
        raise ValueError(f"{key}: folder {folder} holds {what}; it must hold files of one kind")
    (paths,) = present.values()
    return paths


def count_sequences(config: AllConfig) -> int:
    """Sequences of the training data in one pass.

    Raises:
        ValueError: a file cannot be read.
    """
    options = gpt_dataset_config(config)
    total = 0
    for name in config.dataset_config.train_data_path or ():
        if is_row_file(name):
            total += len(TokenRowsDataset.build_low_level_dataset(name, options))
        else:
            tokens = int(IndexedDataset(name).sequence_lengths.sum())
            total += (tokens - 1) // config.model_config.seq_length
    return total
