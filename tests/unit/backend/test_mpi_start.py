# SPDX-License-Identifier: Apache-2.0
"""What starting MPI leaves as it was."""

import signal
import subprocess
import sys

SCRIPT = """
import ctypes, faulthandler, os, signal
from mindspeed_ms.backend.cpu_mpi import finalize, load_mpi

def handlers():
    action = ctypes.create_string_buffer(256)
    found = {}
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        ctypes.CDLL(None).sigaction(number, None, action)
        found[int(number)] = action.raw[:8]
    return found

faulthandler.register(signal.SIGUSR2)
before = handlers()
mpi = load_mpi()
after = handlers()
print([number for number in before if before[number] != after[number]], flush=True)
os.kill(os.getpid(), signal.SIGUSR1)
mpi.COMM_WORLD.Barrier()
print("alive", flush=True)
"""


def test_signals_do_what_they_did():
    """A handler of MPI's answered SIGUSR1, which clusters announce the end of a job with."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]"]
    assert done.returncode == -signal.SIGUSR1
