# SPDX-License-Identifier: Apache-2.0
"""What a process knows of its launcher, of its host's addresses, and of the scheduler."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mindspeed_ms.backend import addresses, env, launcher, scheduler
from mindspeed_ms.backend.torchrun.processes import LogReader

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (
            "python3 /venv/bin/msrun --worker_num 8 --local_worker_num=4 train.py --join x",
            {"worker_num": "8", "local_worker_num": "4"},
        ),
        ("/usr/bin/msrun --join True t.py --worker_num 3", {"join": "True"}),
        ("python -m mindspore.parallel.cluster.run --join=True t.py", {"join": "True"}),
        ("python msrun --local 4 t.py", {"local_worker_num": "4"}),
        ("python msrun --no-such-option", {}),
        ("bash -c msrun", {}),
        ("bash train.sh", None),
        ("", None),
    ],
)
def test_the_command_line_of_msrun(words, options):
    assert launcher.msrun_options(words.split()) == options


@pytest.fixture
def parent(monkeypatch):
    """``parent(words, **variables)``: what ``find`` says about a parent with that command line."""
    monkeypatch.delenv(launcher.PID_VARIABLE, raising=False)
    monkeypatch.delenv("MS_ROLE", raising=False)

    def find(words, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(launcher, "_words_of", lambda pid: words)
        launcher.find.cache_clear()
        return launcher.find()

    yield find
    launcher.find.cache_clear()


MSRUN = ["python", "/bin/msrun", "--worker_num=8", "--local_worker_num", "4"]


def test_launchers_are_told_apart(parent):
    me = os.getppid()
    assert parent(["bash"]) is None
    assert parent([*MSRUN, "--join=True", "t.py"]) is None  # not started by it: no MS_ROLE
    assert parent(["/x/hydra_pmi_proxy", "--pgid"]) == launcher.Launcher(me, "hydra_pmi_proxy")
    assert parent(["slurmstepd: [12.0]"]) == launcher.Launcher(me, "slurmstepd")
    joined = parent([*MSRUN, "--join=True", "t.py"], MS_ROLE="MS_WORKER")
    assert joined == launcher.Launcher(me, "msrun", 4, is_msrun=True)
    assert launcher.watched() == joined
    assert parent([*MSRUN, "t.py"]).local_ranks == 4
    assert launcher.watched() is None  # msrun without --join ends as soon as it has started all
    own = {launcher.PID_VARIABLE: str(me), "LOCAL_WORLD_SIZE": "3"}
    assert parent(["python"], **own) == launcher.Launcher(me, "the launcher", 3)


@pytest.mark.parametrize(
    ("host", "size", "local", "expected"),
    [
        ("10.0.0.1", 4, 4, ("127.0.0.1", "127.0.0.1")),
        ("10.0.0.1", 4, 2, ("10.0.0.1", "10.0.0.1")),
        ("127.0.1.1", 4, 2, ("", "127.0.0.1")),
        ("127.0.1.1", 4, 4, ("127.0.0.1", "127.0.0.1")),
        ("127.0.0.1", 4, None, ("127.0.0.1", "127.0.0.1")),
        ("10.0.0.1", 4, None, ("10.0.0.1", "10.0.0.1")),
    ],
)
def test_where_scheduler_and_ranks_meet(monkeypatch, host, size, local, expected):
    found = None if local is None else launcher.Launcher(1, "msrun", local)
    monkeypatch.setattr(launcher, "find", lambda: found)
    assert scheduler.meeting_point(host, size) == expected


WATCHER = """
import os, sys, time
from mindspeed_ms.backend import launcher
launcher.find()
def on_end(text):
    open(sys.argv[1], "w").write(text)
    os._exit(0)
launcher.watch(on_end)
open(sys.argv[1] + ".ready", "w").close()
time.sleep(60)
"""


def test_the_end_of_a_launcher_is_noticed_within_five_seconds(tmp_path):
    note = tmp_path / "note"
    start = (
        "import os, subprocess, sys, time\n"
        f"os.environ['{launcher.PID_VARIABLE}'] = str(os.getpid())\n"
        "subprocess.Popen([sys.executable, *sys.argv[1:]])\n"
        "time.sleep(60)\n"
    )
    words = [sys.executable, "-c", start, "-c", WATCHER, str(note)]
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    deadline = time.monotonic() + 30
    while not note.with_suffix(".ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    killed = time.monotonic()
    while not note.exists() and time.monotonic() < killed + 5:
        time.sleep(0.05)
    time.sleep(0.1)
    assert note.read_text() == f"its launcher (the launcher, pid {process.pid}) has ended"


def test_a_worker_that_is_gone_before_it_has_joined_is_named(monkeypatch):
    children = {11: {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": "0"}, 12: {"MS_ROLE": "MS_WORKER"}}
    children[13] = {"MS_ROLE": "MS_SCHED"}
    monkeypatch.setattr(scheduler, "children_of", lambda parent: dict(children))
    watch = scheduler.WorkerWatch()
    assert watch.lost() is None
    del children[13], children[12]
    assert watch.lost({12}) is None
    del children[11]
    assert watch.lost() == "rank 0 (pid 11) ended before it had connected; see its log"


def test_children_are_found_with_their_variables():
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={"MARK": "7"}
    )
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            variables = scheduler.children_of(psutil.Process()).get(process.pid, {})
            if variables.get("MARK") == "7":
                break
        assert variables.get("MARK") == "7"
    finally:
        process.kill()
        process.wait()


# ---- addresses


def test_loopback_addresses_and_names():
    assert addresses.is_loopback("127.0.1.1") and addresses.is_loopback("localhost")
    assert not addresses.is_loopback("192.0.2.7")
    assert not addresses.is_loopback("no.such.name.invalid")
    assert addresses.is_own("127.0.0.1") and not addresses.is_own("192.0.2.77")
    assert addresses.towards("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize("is_one_host", [True, False])
def test_mpi_is_confined_to_one_network(monkeypatch, is_one_host):
    names = ("UCX_TLS", "UCX_NET_DEVICES", "FI_TCP_IFACE")
    for name in names:
        monkeypatch.setenv(name, "")  # so that the values set below end with the test
        env.remove(name)
    monkeypatch.setattr(addresses, "card_of", {"127.0.0.1": "lo", "10.0.0.1": "eth7"}.get)
    addresses.confine_mpi(is_one_host, "10.0.0.1")
    card = "lo" if is_one_host else "eth7"
    assert [env.get(name) for name in names] == ["self,sm" if is_one_host else None, card, card]
    env.put("UCX_NET_DEVICES", "mlx5_0:1")
    addresses.confine_mpi(is_one_host, "10.0.0.1")
    assert env.get("UCX_NET_DEVICES") == "mlx5_0:1"


def test_the_card_of_an_address_is_found():
    assert addresses.card_of("127.0.0.1")
    assert addresses.card_of("192.0.2.201") is None
    assert all(not addresses.is_loopback(address) for address in addresses.own_addresses())


@pytest.mark.parametrize(
    ("role", "port", "ends"),
    [("MS_SCHED", "4711", True), ("MS_SCHED", "4712", False), ("MS_WORKER", "4711", False)],
)
def test_a_stopped_scheduler_of_the_same_job_is_killed(monkeypatch, role, port, ends):
    monkeypatch.setenv("MS_SCHED_PORT", "4711")
    variables = {**os.environ, "MS_ROLE": role, "MS_SCHED_PORT": port}
    process = subprocess.Popen(["sleep", "60"], env=variables)
    try:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # until it has stopped
        launcher.end_scheduler()
        if ends:
            assert process.wait(10) == -signal.SIGKILL
        else:
            time.sleep(0.2)
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_log_that_is_removed_is_still_shown(tmp_path):
    output = io.StringIO()
    with (tmp_path / "worker_0.log").open("w") as log:
        reader = LogReader([tmp_path / "worker_0.log"], output)
        log.write("one\nhalf a ")
        log.flush()
        deadline = time.monotonic() + 20
        while not output.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert output.getvalue() == "one\n"
        (tmp_path / "worker_0.log").unlink()
        log.write("line\nno end")
    reader.close()
    assert output.getvalue() == "one\nhalf a line\nno end"
