# SPDX-License-Identifier: Apache-2.0
"""Merge the profiles of ranks, which ``--profile-offline-analyse`` leaves apart, into one trace.

    python -m tools.merge_profile output/profile

Writes ``trace.json`` (for https://ui.perfetto.dev or chrome://tracing) and ``communication.json``
beside them, and prints where the time of the recorded iterations went.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mindspeed_ms.engine.observe.profile_trace import read_ranks, summary_lines, write_merged
from mindspeed_ms.toolkit.launch.command import Parser


def main() -> None:
    """Merge one folder."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="what --profile-save-path was")
    folder = parser.parse_args().folder
    try:
        traces = read_ranks(folder)
        path = write_merged(folder, traces, with_table=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for line in [str(path), *summary_lines(traces)]:
        print(line)  # noqa: T201 - the tool's answer


if __name__ == "__main__":
    main()
