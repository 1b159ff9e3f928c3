# SPDX-License-Identifier: Apache-2.0
"""Run scripts that import ``mindformers`` or ``transformer``.

export PYTHONPATH="$(python -m mindspeed_ms.toolkit.compat path):$PYTHONPATH"
python -m mindspeed_ms.toolkit.compat run script.py ...
python -m mindspeed_ms.toolkit.compat run -m transformer.trainer.trainer ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_ms.backend import env
from mindspeed_ms.backend.torchrun.worker import run_script
from mindspeed_ms.toolkit.compat.guard import PATH

USAGE = "usage: python -m mindspeed_ms.toolkit.compat path | run [-m MODULE | SCRIPT] [ARGUMENTS]"


def main(words: Sequence[str]) -> int:
    """Print the path, or run a script with it; return the exit status."""
    if list(words) == ["path"]:
        sys.stdout.write(f"{PATH}\n")
        return 0
    command = list(words[1:])
    if words[:1] != ["run"] or not command or command == ["-m"]:
        sys.stderr.write(f"{USAGE}\n")
        return 0 if words[:1] in (["-h"], ["--help"]) else 2
    if command[0] != "-m" and not Path(command[0]).is_file():
        sys.stderr.write(f"compat run: error: there is no script {command[0]}; check the path\n")
        return 2
    sys.path.insert(1, str(PATH))
    paths = (str(PATH), env.get("PYTHONPATH"))
    env.put("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    run_script(command)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
