# SPDX-License-Identifier: Apache-2.0
"""One rank of a ``dist_run`` pool: joins the job, then runs tasks until the parent hangs up."""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import pickle
import random
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import mindspore
import numpy as np
import pytest

from mindspeed_ms.backend import autograd, comm

SEED = 1234


def load_function(task):
    """The worker function, from the module the test was collected from."""
    sys.path[:] = task.import_path
    module = sys.modules.get(task.module)
    if module is None or Path(getattr(module, "__file__", "") or "").resolve() != Path(task.file):
        spec = importlib.util.spec_from_file_location(task.module, task.file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[task.module] = module
        spec.loader.exec_module(module)
    return getattr(module, task.function)


def reset():
    """Leave nothing of the previous task behind."""
    parallel_state = sys.modules.get("mindspeed_ms.core.parallel_state")
    if parallel_state is not None:
        parallel_state.destroy_model_parallel()
    autograd.enable()
    random.seed(SEED)
    np.random.seed(SEED)
    mindspore.set_seed(SEED)


def run(task) -> tuple:
    """The answer to one task: a result, a skip or a traceback."""
    try:
        reset()
        result = load_function(task)(**task.params)
        return "result", result
    except pytest.skip.Exception as skip:
        return "skip", str(skip)
    except BaseException:  # noqa: BLE001  (SystemExit of a task too is its failure)
        return "error", traceback.format_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def answer(connection: Connection, message: tuple) -> None:
    """Send a message; a result that cannot be pickled becomes a failure."""
    try:
        connection.send(message)
    except (pickle.PicklingError, AttributeError, TypeError):
        connection.send(("error", traceback.format_exc()))


def main() -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    connection = Connection(int(sys.argv[1]))
    comm.init_process_group()
    answer(connection, ("result", None))
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        answer(connection, run(pickle.loads(message)))


if __name__ == "__main__":
    main()
