"""Local files of a path that a user names: rows of tokens, or a token file."""

from __future__ import annotations

from pathlib import Path

from mindspeed_ms.config import AllConfig
from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.token_rows import TokenRowsDataset
from mindspeed_ms.engine.datasets import gpt_dataset_config

_ROWS = (".mindrecord", ".npy")


def find_data(name: str, key: str) -> tuple[str, ...]:
    """The data files of a path, as ``dataset_config`` takes them.

    Args:
        name: a ``.mindrecord`` or ``.npy`` file, the prefix of a ``.bin/.idx`` pair, or a folder
            that holds files of one of these kinds.
        key: how the user gave it, for messages.

    Raises:
        ValueError: there is nothing of the kind, a folder mixes kinds, or a MindRecord file comes
            without its ``.db``.
    """
    path = Path(name)
    found = _in_folder(path, key) if path.is_dir() else [path]
    for file in found:
        if file.suffix in _ROWS and not file.is_file():
            raise ValueError(f"{key}: there is no file {file}; check the path")
        if file.suffix not in _ROWS and not IndexedDataset.exists(str(file)):
            raise ValueError(
                f"{key}: {file} is no folder, no .mindrecord or .npy file and no prefix of a "
                ".bin/.idx pair; check the path"
            )
        if file.suffix == ".mindrecord" and not Path(f"{file}.db").is_file():
            raise ValueError(f"{key}: {file}.db is missing beside {file}; copy both")
    return tuple(map(str, found))


def _in_folder(folder: Path, key: str) -> list[Path]:
    kinds = {
        ".mindrecord": list(folder.glob("*.mindrecord")),
        ".npy": list(folder.glob("*.npy")),
        ".bin/.idx": [path.with_suffix("") for path in folder.glob("*.idx")],
    }
    present = {kind: sorted(paths) for kind, paths in kinds.items() if paths}
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
        if name.endswith(_ROWS):
            total += len(TokenRowsDataset.build_low_level_dataset(name, options))
        else:
            tokens = int(IndexedDataset(name).sequence_lengths.sum())
            total += (tokens - 1) // config.model_config.seq_length
    return total
