# SPDX-License-Identifier: Apache-2.0
"""Join all datasets of a folder, in the order of their names, into one.

Example: python tools/merge_datasets.py --input parts/ --output-prefix whole
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from mindspeed_ms.data.indexed_dataset import (
    IndexedDataset,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

logger = logging.getLogger("merge_datasets")


def find_prefixes(directory: str) -> list[str]:
    """Prefixes of the datasets in a folder, sorted by name; other files are no hindrance.

    Raises:
        ValueError: it is no folder, holds no dataset, or half of one.
    """
    if not os.path.isdir(directory):
        raise ValueError(f"{directory} is not a folder; --input needs the folder of the datasets")
    names = {name for name in os.listdir(directory) if name.endswith((".bin", ".idx"))}
    stems = sorted({name[:-4] for name in names})
    if not stems:
        raise ValueError(f"{directory} holds no .bin and .idx files; give another folder")
    for stem in stems:
        for name in (f"{stem}.bin", f"{stem}.idx"):
            if name not in names:
                raise ValueError(
                    f"{directory} has no {name}, only its other half; add or remove it"
                )
    return [os.path.join(directory, stem) for stem in stems]


def merge(prefixes: Sequence[str], output_prefix: str) -> int:
    """Write the datasets one after the other; return the number of sequences.

    Raises:
        ValueError: a dataset is malformed, or their token types differ.
    """
    first = IndexedDataset(prefixes[0])
    dtype = first.dtype
    first.close()
    count = 0
    with IndexedDatasetBuilder(get_bin_path(output_prefix), dtype) as builder:
        for prefix in prefixes:
            count += builder.add_index(prefix)
            logger.info("added %s", prefix)
        builder.finalize(get_idx_path(output_prefix))
    return count


def main(argv: Sequence[str] | None = None) -> None:
    """Merge; bad input ends with one line and status 2."""
    parser = Parser.of(__doc__)
    parser.add_argument("--input", required=True, help="folder of the datasets")
    parser.add_argument("--output-prefix", required=True, help="path of the result, no suffix")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with user_errors():
        prefixes = find_prefixes(args.input)
        if os.path.realpath(args.output_prefix) in map(os.path.realpath, prefixes):
            raise ValueError(f"{args.output_prefix} is one of the inputs; choose another output")
        count = merge(prefixes, args.output_prefix)
    logger.info("wrote %d sequences to %s", count, args.output_prefix)


if __name__ == "__main__":
    main()
