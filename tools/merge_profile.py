# SPDX-License-Identifier: Apache-2.0
"""Merge the profiles of ranks, which ``--profile-offline-analyse`` leaves apart, into one trace.

    python -m tools.merge_profile output/profile

Writes ``trace.json`` (for https://ui.perfetto.dev or chrome://tracing) and ``communication.json``
beside them, and prints where the time of the recorded iterations went.
"""

from __future__ import annotations

from pathlib import Path

from mindspeed_ms.engine.observe.profile_trace import read_ranks, summary_lines, write_merged
from mindspeed_ms.toolkit.launch.command import Parser, user_errors


def main() -> None:
    """Merge one folder."""
    parser = Parser.of(__doc__)
    parser.add_argument("folder", type=Path, help="what --profile-save-path was")
    folder = parser.parse_args().folder
    with user_errors():
        traces = read_ranks(folder)
        path = write_merged(folder, traces, with_table=True)
    for line in [str(path), *summary_lines(traces)]:
        print(line)  # noqa: T201 - the tool's answer


if __name__ == "__main__":
    main()
