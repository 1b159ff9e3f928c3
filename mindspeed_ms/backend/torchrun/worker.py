# SPDX-License-Identifier: Apache-2.0
"""Runs in every process that a launcher of this project starts: the user's script, as one rank.

Only the standard library is imported here: what the script prints first is its own.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

STATUS = "MINDSPEED_MS_EXIT_STATUS"
"""With what status the script wanted to end; the job may end this process before it can."""


def run_script(words: list[str]) -> None:
    """Run a script, or with ``-m`` a module, as Python itself would."""
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path[0] = ""
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    """Run the script named on the command line."""
    try:
        run_script(sys.argv[1:])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        os.environ[STATUS] = str(code & 255)
        raise
    except KeyboardInterrupt:
        if sys.excepthook is not sys.__excepthook__:  # it says what an interrupted run is told
            raise
        # Modules may be half loaded: MindSpore's then abort the interpreter on its way out.
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
