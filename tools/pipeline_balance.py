# SPDX-License-Identifier: Apache-2.0
"""Balance a pipeline: layers per stage and recomputation, from measured memory and time.

python tools/pipeline_balance.py --init measured.yaml -mb 64 -mem 56000 -s 8 -i 1
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from mindspeed_ms.planning.balance_files import answer_lines, solve_file
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

logger = logging.getLogger("pipeline_balance")


def build_parser() -> argparse.ArgumentParser:
    """The options, named as in MindFormers' tool."""
    parser = Parser.of(__doc__)
    parser.add_argument("--init", type=Path, required=True, help="YAML file with measurements")
    parser.add_argument("-m", "--model_name", default="model", help="name in the answer")
    parser.add_argument("-mb", "--micro_batch", type=int, default=4, help="micro-batches of a step")
    parser.add_argument("-mem", "--max_memory", type=float, default=56000, help="MiB of a stage")
    parser.add_argument("-s", "--stage", type=int, help="stages; default: those measured")
    parser.add_argument("-i", "--interleave_degree", type=int, default=1, help="model chunks")
    parser.add_argument("-t", "--time_limit", type=float, default=90, help="seconds to solve")
    return parser


def main() -> int:
    """Print the balanced lists; status 2 when the input is wrong or nothing fits."""
    options = build_parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with user_errors():
        found = solve_file(
            options.init,
            stages=options.stage,
            chunks=options.interleave_degree,
            microbatches=options.micro_batch,
            memory=options.max_memory,
            seconds=options.time_limit,
        )
    logger.info("%s", options.model_name)
    for line in answer_lines(found):
        logger.info("%s", line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
