# SPDX-License-Identifier: Apache-2.0
"""Make the report of one or several runs: one HTML file that needs no network.

    mindspeed-ms report output/my_run
    mindspeed-ms report output/first output/second --output both.html

A run's folder is what it was given with ``--save``. Several runs share the axes of the curves, and
what differs in their settings is listed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mindspeed_ms.engine.report.page import FILE_NAME, write_report
from mindspeed_ms.toolkit.launch.command import Parser, user_errors


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser.of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="folder of a run")
    parser.add_argument(
        "--output", type=Path, help=f"the file; without it {FILE_NAME} in the first folder"
    )
    return parser.parse_args()


def main() -> int:
    """Write one report."""
    arguments = parse()
    output = arguments.output or arguments.runs[0] / FILE_NAME
    with user_errors():
        write_report(arguments.runs, output)
        sys.stdout.write(f"{output}\n")
    return 0
