# SPDX-License-Identifier: Apache-2.0
"""Jobs of two hosts: what they compute, how they begin, how they end."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from hosts import two_hosts  # noqa: F401
from jobs import OWN_MSRUN, REPOSITORY, SCRIPTS, TORCHRUN, Job, launch_words

pytestmark = pytest.mark.e2e
SLOW = pytest.mark.slow
DATA = REPOSITORY / "data" / "tiny"
LINE = re.compile(r"iteration +(\d+)/ +\d+ \|.* lm loss: (\S+) \|.* grad norm: (\S+) \|")

STARTING = 60.0
"""Seconds that include the start of Python and MindSpore on a busy machine; nobody waits longer
than that for a rank that does not come (``cluster_time_out`` is 300)."""

LOOP = '''
"""Ranks that communicate for some time; argv: seconds, how rank 3 ends at the start."""
import os, signal, sys, time
from mindspeed_ms.backend import comm, env, memory
import numpy as np

seconds, mode = float(sys.argv[1]), sys.argv[2]
if mode == "raise" and os.environ.get("MS_NODE_ID") == "3":
    raise ValueError("no start for rank 3")
if mode == "exit" and os.environ.get("MS_NODE_ID") == "3":
    os._exit(7)
if mode == "zero" and os.environ.get("MS_NODE_ID") == "3":
    sys.exit(0)
comm.init_process_group()
started, step = time.monotonic(), 0
print("threads", os.environ["OMP_NUM_THREADS"], flush=True)
while True:
    step += 1
    comm.note_iteration(step)
    total = memory.from_numpy(np.full(100000, comm.get_rank() + 1, np.float32))
    comm.all_reduce(total)
    assert float(total.asnumpy()[0]) == 10.0
    if step == 3:
        sys.stdout.write(f"rank {comm.get_rank()} is at work\\n")  # whole lines, also on one pipe
        sys.stdout.flush()
    if max(comm.all_gather_object(time.monotonic() - started)) > seconds:
        break
    time.sleep(0.02)
print("rank", comm.get_rank(), "has ended well", flush=True)
'''


class Pair:
    """A launcher on each host."""

    def __init__(self, hosts, tmp_path):
        self.hosts, self.folder = hosts, tmp_path
        self.jobs = []

    def msrun(self, script, *first, options=({}, {}), launcher="msrun", **variables):
        """Start the same script on both; ``options`` differ."""
        for number, host in enumerate(self.hosts):
            folder = self.folder / host.name
            settings = {
                "worker_num": 4,
                "local_worker_num": 2,
                "master_addr": self.hosts[0].address,
                "master_port": 8118,
                "node_rank": number,
                "log_dir": folder / "log",
                "cluster_time_out": 300,
                "join": True,
                **options[number],
            }
            settings = {name: value for name, value in settings.items() if value is not None}
            words = [f"--{name}={value}" for name, value in settings.items()]
            front = OWN_MSRUN if launcher == "own_msrun" else [SCRIPTS / "msrun"]
            self.jobs.append(host.start([*front, *words, *script, *first], folder, **variables))
        return self

    def torchrun(self, scripts, **options):
        """Start scripts with torchrun's words."""
        for number, host in enumerate(self.hosts):
            folder = self.folder / host.name
            settings = {
                "nnodes": 2,
                "nproc-per-node": 2,
                "node-rank": number,
                "master-addr": self.hosts[0].address,
                "master-port": 29500,
                "log-dir": folder / "log",
                **options,
            }
            words = [f"--{name}={value}" for name, value in settings.items()]
            self.jobs.append(host.start([*TORCHRUN, *words, *scripts[number]], folder))
        return self

    def text(self):
        return "\n".join(job.text() for job in self.jobs)

    def logs(self):
        return "\n".join(job.logs() for job in self.jobs)

    def at_work(self):
        for number, job in enumerate(self.jobs):
            for rank in (2 * number, 2 * number + 1):
                job.wait_for(f"rank {rank} is at work", 90)
        return self

    def wait(self, seconds=120.0):
        """Exit statuses; None for one that does not end."""
        deadline = time.monotonic() + seconds
        return [job.wait(max(0.1, deadline - time.monotonic())) for job in self.jobs]

    def end(self):
        return [line for job in self.jobs for line in job.end()]


@pytest.fixture
def pair(two_hosts, tmp_path):  # noqa: F811
    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    pair = Pair(two_hosts, tmp_path)
    pair.script = script
    yield pair
    pair.end()


def check_failure(pair, started, message, seconds=25.0):
    """Both launchers fail in time, nothing stays, and the reason is told on both hosts."""
    statuses = pair.wait(90)
    took = time.monotonic() - started
    for job in pair.jobs:
        job.seconds_until_gone()
    left = pair.end()
    assert not left, left
    assert 0 not in statuses and None not in statuses, pair.text()[-4000:]
    assert took < seconds, f"{took:.1f} s\n{pair.text()[-3000:]}"
    for number, part in enumerate(message if isinstance(message, tuple) else (message, message)):
        assert re.search(part, pair.jobs[number].text()), pair.jobs[number].text()[-4000:]


# ---- beginnings


@pytest.mark.parametrize(
    "node_ranks", [(0, 1), pytest.param((None, None), marks=SLOW)], ids=["numbered", "unnumbered"]
)
def test_ranks_are_numbered_host_by_host_and_share_memory_inside(pair, node_ranks):
    report = pair.folder / "report.py"
    report.write_text(
        "import os, time\nfrom mindspeed_ms.backend import comm\ncomm.init_process_group()\n"
        "names = 'RANK RANK_ID LOCAL_RANK WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS'.split()\n"
        "print('I am', *(os.environ[name] for name in names), os.uname().nodename, flush=True)\n"
        "comm.barrier()\n"
    )
    options = [{"node_rank": number} for number in node_ranks]
    threads = max(1, len(os.sched_getaffinity(0)) // 2)  # two ranks on each host, not four
    pair.msrun([report], options=options, OMP_NUM_THREADS="")
    assert pair.wait() == [0, 0], pair.text()
    for rank in range(4):
        host = "ab"[rank // 2]
        line = f"I am {rank} {rank} {rank % 2} 4 {pair.hosts[0].address} {threads} host{host}"
        assert line in pair.jobs[rank // 2].text()
    assert not pair.end()


WRONG = {
    "node_rank": (
        {},
        {"node_rank": 0},
        "rank . has connected twice, from .* and from .*",
    ),
    "worker_num": (
        {},
        {"worker_num": 3},
        r"rank [23] .* expects 3 ranks, the scheduler 4; start every host with the same",
    ),
    "outside": ({}, {"node_rank": 5}, r"rank 1[01] on .* is outside 0\.\.3; check --node_rank"),
}


@pytest.mark.parametrize(
    "name", ["node_rank", *(pytest.param(name, marks=SLOW) for name in ("worker_num", "outside"))]
)
def test_hosts_that_were_started_differently_end_at_once(pair, name):
    *options, message = WRONG[name]
    started = time.monotonic()
    pair.msrun([pair.script], 60, "plain", options=options)
    check_failure(pair, started, message, STARTING)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("raise", "rank 3 .*ended before it had connected"),
        pytest.param("exit", "rank 3 |rank 2 ", marks=SLOW),
        pytest.param("zero", "rank 3 ", marks=SLOW),
    ],
)
def test_a_rank_that_never_joins_ends_both_hosts(pair, mode, message):
    started = time.monotonic()
    pair.msrun([pair.script], 60, mode)
    check_failure(pair, started, (message, ""), STARTING)


@pytest.mark.slow
def test_a_host_whose_ranks_all_fail_at_once_ends_the_other(pair):
    broken = pair.folder / "broken.py"
    broken.write_text("from mindspeed_ms.training import pretrain\nraise OSError('no disk')\n")
    started = time.monotonic()
    pair.torchrun([[pair.script, "60", "plain"], [broken]])
    message = "on hostb ended (before it had connected: OSError|with status 1 before it had conn)"
    check_failure(pair, started, (message, ""), STARTING)


@pytest.mark.slow
def test_a_host_whose_ranks_are_killed_before_they_join_ends_the_other(pair):
    killed = pair.folder / "killed.py"
    killed.write_text("import os\nos.kill(os.getpid(), 9)\n")
    started = time.monotonic()
    pair.torchrun([[pair.script, "60", "plain"], [killed]])
    message = "rank [23] on hostb ended with status 137 before it had connected"
    check_failure(pair, started, (message, "failed with status 137"), STARTING)


@pytest.mark.slow
def test_another_secret_is_one_line_on_both_hosts(pair):
    started = time.monotonic()
    for number, host in enumerate(pair.hosts):
        folder = pair.folder / host.name
        words = [
            *(SCRIPTS / "msrun", "--worker_num=4", "--local_worker_num=2", "--join=True"),
            *(f"--master_addr={pair.hosts[0].address}", f"--node_rank={number}"),
            *(f"--log_dir={folder / 'log'}", "--cluster_time_out=15", pair.script, "9", "plain"),
        ]
        secret = f"the secret of host {number}"
        pair.jobs.append(host.start(words, folder, MINDSPEED_MS_JOB_SECRET=secret))
    message = "does not know the secret of this job; if it belongs to it, set MINDSPEED_MS_JOB_S"
    check_failure(pair, started, (message, "has another secret than this process"), 45)


# ---- addresses


@pytest.mark.slow
def test_a_card_that_leads_nowhere_is_not_used(pair):
    for number, host in enumerate(pair.hosts):
        host.add_dead_card(f"172.30.{number}.1")
    pair.msrun([pair.script], 1, "plain")
    assert pair.wait() == [0, 0], pair.text()


NAMES = ("127.0.1.1 hosta\n10.77.0.2 hostb\n", "10.77.0.1 hosta\n127.0.1.1 hostb\n")


@pytest.mark.parametrize("two_hosts", [NAMES], indirect=True, ids=["debian"])
def test_all_that_can_be_wrong_with_a_network_at_once_works(pair):
    for number, host in enumerate(pair.hosts):
        host.add_dead_card(f"172.30.{number}.1")
    options = ({"master_addr": "hosta"},) * 2
    inherited = {"PMI_FD": "17", "PMI_RANK": "1", "PMI_SIZE": "2", "PMI_JOBID": "7.0"}
    pair.msrun([pair.script], 1, "plain", options=options, **inherited)
    assert pair.wait() == [0, 0], pair.text()


@pytest.mark.slow
@pytest.mark.parametrize("two_hosts", [NAMES], indirect=True, ids=["debian"])
@pytest.mark.parametrize("launcher", ["msrun", "own_msrun", "torchrun"])
def test_a_master_name_that_is_a_loopback_address_at_home_works(pair, launcher):
    if launcher == "torchrun":
        words = [pair.script, "1", "plain"]
        pair.torchrun([words, words], **{"master-addr": "hosta"})
    else:
        options = ({"master_addr": "hosta"},) * 2
        pair.msrun([pair.script], 1, "plain", options=options, launcher=launcher)
    assert pair.wait() == [0, 0], pair.text()


@pytest.mark.parametrize("two_hosts", [NAMES], indirect=True, ids=["debian"])
@pytest.mark.slow
def test_a_master_name_that_leads_the_other_host_to_itself_is_one_line(pair):
    started = time.monotonic()
    options = ({"master_addr": "hostb", "cluster_time_out": 15},) * 2
    pair.msrun([pair.script], 1, "plain", options=options)
    message = r"--master_addr is 127.0.1.1 on this host, which is not the master \(rank [23]\)"
    check_failure(pair, started, ("no scheduler at ", message), 45)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PMI", "PMIX"])
def test_variables_of_an_outer_process_manager_do_no_harm(pair, name):
    variables = {"PMI_FD": "17", "PMI_RANK": "1", "PMI_SIZE": "2", "PMI_JOBID": "7.0"}
    if name == "PMIX":
        variables = {"PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.7.0", "PMIX_SERVER_URI2": "x"}
    pair.msrun([pair.script], 1, "plain", **variables)
    assert pair.wait() == [0, 0], pair.text()


# ---- ends


def test_a_killed_rank_ends_both_hosts(pair):
    pair.msrun([pair.script], 60, "plain").at_work()
    started = time.monotonic()
    pair.jobs[1].send("3", signal.SIGKILL)
    check_failure(pair, started, ("rank 0 stops because rank 3 ", "rank 2 stops because rank 3 "))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("launcher", ["msrun", "torchrun"])
def test_a_killed_launcher_ends_both_hosts(pair, number, launcher):
    if launcher == "msrun":
        pair.msrun([pair.script], 60, "plain").at_work()
    else:
        words = [pair.script, "60", "plain"]
        pair.torchrun([words, words]).at_work()
    started = time.monotonic()
    pair.jobs[number].send("launcher", signal.SIGKILL)
    check_failure(pair, started, "")
    assert "Traceback" not in pair.logs()


@pytest.mark.slow
def test_a_cable_that_is_cut_for_ten_seconds_ends_nothing(pair):
    pair.msrun([pair.script], 20, "plain").at_work()
    pair.hosts[1].plug(False)
    time.sleep(10)
    pair.hosts[1].plug(True)
    assert pair.wait(120) == [0, 0], pair.text()


@pytest.mark.slow
def test_a_cable_that_is_cut_for_ever_is_called_so(pair):
    pair.msrun([pair.script], 600, "plain").at_work()
    started = time.monotonic()
    pair.hosts[1].plug(False)
    message = "cannot be reached|network (is|may be) cut"
    statuses = pair.wait(90)
    assert None not in statuses and 0 not in statuses, pair.text()[-3000:]
    assert time.monotonic() - started < 70
    assert not pair.end()
    for job in pair.jobs:
        assert re.search(message, job.logs()), job.logs()[-3000:]
    assert "died" not in pair.logs()
    assert "Traceback" not in pair.logs()


# ---- training


def training(layout, iterations, folder, *more):
    """The words of a short run; every rank has a share of the optimizer."""
    return [
        *(REPOSITORY / "pretrain_gpt.py", "--yaml", REPOSITORY / "configs" / "tiny_gpt.yaml"),
        *("--tensor-model-parallel-size", "1", "--train-iters", iterations, "--log-interval", "1"),
        *("--global-batch-size", "8", "--eval-iters", "0", "--eval-interval", "1000"),
        *("--data-path", DATA / "tiny_text_document", "--tokenizer-model", DATA / "tok.model"),
        *("--data-cache-path", folder / "cache", "--lr-warmup-iters", "2", *layout, *more),
    ]


LAYOUTS = {
    "tp": ("--tensor-model-parallel-size", "2", "--sequence-parallel"),
    "pp": ("--pipeline-model-parallel-size", "2"),
    "dp": ("--use-distributed-optimizer", "--overlap-grad-reduce"),
    "cp": ("--context-parallel-size", "2"),
    "ep": (
        *("--num-experts", "4", "--expert-model-parallel-size", "2", "--moe-router-topk", "2"),
        *("--moe-token-dispatcher-type", "alltoall", "--moe-grouped-gemm"),
    ),
}


def steps(text):
    return {int(number): (loss, norm) for number, loss, norm in LINE.findall(text)}


def on_one_host(tmp_path, words, ranks):
    folder = tmp_path / "one"
    folder.mkdir(exist_ok=True)
    job = Job([*launch_words("torchrun", ranks, folder), *words], folder)
    try:
        assert job.wait(180) == 0, job.text()[-3000:]
        return steps(job.text())
    finally:
        job.end()


@pytest.mark.parametrize(
    "name", ["tp", *(pytest.param(name, marks=SLOW) for name in ("pp", "dp", "cp", "ep"))]
)
def test_a_layout_across_hosts_computes_what_it_does_on_one(pair, tmp_path, name):
    words = training(LAYOUTS[name], 4, tmp_path)
    expected = on_one_host(tmp_path, words, 2)
    pair.msrun(words, options=({"worker_num": 2, "local_worker_num": 1},) * 2)
    assert pair.wait(180) == [0, 0], pair.text()[-4000:]
    assert sorted(expected) == [1, 2, 3, 4]
    assert steps(pair.text()) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tp", "pp", "cp", "ep"])
def test_two_ranks_on_each_host_compute_the_same(pair, tmp_path, name):
    words = training(LAYOUTS[name], 4, tmp_path)
    expected = on_one_host(tmp_path, words, 4)
    pair.msrun(words)
    assert pair.wait(240) == [0, 0], pair.text()[-4000:]
    found = steps(pair.text())
    assert sorted(found) == sorted(expected) == [1, 2, 3, 4]
    for number, values in expected.items():  # sums may run in another order
        assert [float(v) for v in found[number]] == pytest.approx(
            [float(v) for v in values], rel=2e-6
        )


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_losses(pair, tmp_path):
    layout = LAYOUTS["tp"]
    expected = on_one_host(tmp_path, training(layout, 30, tmp_path), 2)
    saved = ("--save", tmp_path / "ck", "--load", tmp_path / "ck", "--save-interval", "2")
    words = training(layout, 30, tmp_path, *saved)
    options = ({"worker_num": 2, "local_worker_num": 1},) * 2
    pair.msrun(words, options=options)
    pair.jobs[1].wait_for("iteration        8/", 120)
    pair.jobs[1].send("1", signal.SIGKILL)
    assert 0 not in pair.wait(60)
    found = steps(pair.text())
    assert not pair.end()
    pair.jobs.clear()
    pair.msrun(words, options=options)
    assert pair.wait(180) == [0, 0], pair.text()[-3000:]
    assert "successfully loaded checkpoint" in pair.text()
    assert {**found, **steps(pair.text())} == expected


@pytest.mark.slow
def test_both_launchers_start_a_failed_job_again(pair, tmp_path):
    layout = ("--pipeline-model-parallel-size", "2")
    expected = on_one_host(tmp_path, training(layout, 40, tmp_path), 4)
    words = training(layout, 40, tmp_path, "--save", tmp_path / "ck", "--save-interval", "2")
    pair.torchrun([words, words], **{"max-restarts": 3})
    pair.jobs[1].wait_for("iteration        8/", 120)
    pair.jobs[1].send("2", signal.SIGKILL)
    pair.jobs[0].wait_for("restart 1: the run goes on from iteration", 90)
    pair.jobs[1].wait_for("iteration       20/", 120)
    pair.jobs[0].send("scheduler", signal.SIGKILL)
    assert pair.wait(240) == [0, 0], pair.text()[-4000:]
    assert "restart 2 of 3" in pair.text()
    found = steps(pair.text())
    assert {number: float(loss) for number, (loss, _) in found.items()} == pytest.approx(
        {number: float(loss) for number, (loss, _) in expected.items()}, rel=2e-6
    )


def test_another_learning_rate_on_one_host_is_named(pair, tmp_path):
    layout = LAYOUTS["tp"]
    words = [training(layout, 4, tmp_path, "--lr", rate) for rate in ("5e-3", "6e-3")]
    for number, host in enumerate(pair.hosts):
        folder = pair.folder / host.name
        launch = [*TORCHRUN, "--nnodes=2", f"--node-rank={number}", f"--log-dir={folder / 'log'}"]
        launch.append(f"--master-addr={pair.hosts[0].address}")
        pair.jobs.append(host.start([*launch, *words[number]], folder))
    started = time.monotonic()
    message = r"learning_rate is 0.005 on rank 0 \(hosta\) and 0.006 on rank 1 \(hostb\)"
    check_failure(pair, started, message, STARTING)
    assert "Traceback" not in pair.logs()


def test_a_folder_that_is_not_shared_is_found_at_the_start(pair, tmp_path):
    pair.hosts[1].hide(tmp_path / "ck")
    words = training(LAYOUTS["tp"], 4, tmp_path, "--save", tmp_path / "ck")
    started = time.monotonic()
    pair.msrun(words, options=({"worker_num": 2, "local_worker_num": 1},) * 2)
    message = r"is not shared: what rank 0 writes there does not appear on hostb \(rank 1\)"
    check_failure(pair, started, message, STARTING)
    assert "Traceback" not in pair.logs()
    assert not list((tmp_path / "ck").iterdir())


@pytest.mark.slow
def test_a_checkpoint_that_is_on_one_host_only_is_named(pair, tmp_path):
    layout = LAYOUTS["tp"]
    saved = training(layout, 4, tmp_path, "--save", tmp_path / "ck", "--save-interval", "2")
    on_one_host(tmp_path, saved, 2)
    pair.hosts[1].hide(tmp_path / "ck")
    words = training(layout, 6, tmp_path, "--load", tmp_path / "ck", "--save", tmp_path / "new")
    started = time.monotonic()
    pair.msrun(words, options=({"worker_num": 2, "local_worker_num": 1},) * 2)
    message = r"which is there on hosta \(rank 0\), is not complete on hostb \(rank 1\): nothing of"
    check_failure(pair, started, message, STARTING)
    assert "Traceback" not in pair.logs()
