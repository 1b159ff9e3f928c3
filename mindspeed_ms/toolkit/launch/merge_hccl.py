# SPDX-License-Identifier: Apache-2.0
"""Join the rank tables of several hosts into the one that every host needs.

python -m mindspeed_ms.toolkit.launch.merge_hccl hccl_8p_*.json

The hosts' ranks count on in the order of the files. The result is ``hccl_4s_32p.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_ms.backend import rank_table
from mindspeed_ms.toolkit.launch.command import Parser, user_errors
from mindspeed_ms.toolkit.launch.hccl_tools import write_table


def main(words: Sequence[str] | None = None) -> int:
    """Write the joined table into the working directory; return the exit status."""
    parser = Parser(
        prog="merge_hccl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", help="rank tables, in the order of their ranks")
    with user_errors("merge_hccl"):
        files = parser.parse_args(words).files
        merged = rank_table.merge([rank_table.read(file) for file in files])
        path = write_table(merged, Path.cwd())
        sys.stdout.write(
            f"rank table of {len(merged.servers)} servers, {len(merged.devices)} devices: {path}\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
