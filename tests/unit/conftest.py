# SPDX-License-Identifier: Apache-2.0
"""One rank without a launcher, for tests that build layers in the test process."""

import pytest

from mindspeed_ms.backend import autograd, comm, device
from mindspeed_ms.core import parallel_state, run_state
from mindspeed_ms.engine.parallel_setup import set_seed

device.initialize()  # before any test runs an operator: errors then come from the call they are of


@pytest.fixture
def refused(capsys):
    """Calls what must end with status 2 and one line on standard error; returns the line."""

    def told(command, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            command(*arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and "Traceback" not in line
        return line

    return told


@pytest.fixture(scope="module", autouse=True)
def _no_run_left():
    """A file of tests begins without the run that the one before has left."""
    yield
    run_state.renew()


@pytest.fixture
def single_rank():
    """Groups of size 1 and fresh seeds; taken down afterwards."""
    comm.init_process_group()
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel()
    set_seed(1234)
    with autograd.recording():
        yield
    parallel_state.destroy_model_parallel()


@pytest.fixture
def one_rank():
    """Communication of one rank, nothing else; taken down if it was not there before."""
    was_ready = comm.is_initialized()
    comm.init_process_group()
    yield
    if not was_ready:
        comm.destroy_process_group()
