# SPDX-License-Identifier: Apache-2.0
"""The launcher: starts ranks, shows what they print, passes signals on, starts them again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from mindspeed_ms.backend import addresses, env, launcher, scheduler
from mindspeed_ms.backend.job_client import report_gone
from mindspeed_ms.backend.job_secret import VARIABLE as SECRET
from mindspeed_ms.backend.job_secret import new_secret
from mindspeed_ms.backend.torchrun import worker
from mindspeed_ms.backend.torchrun.modules import refuse_other_files, require_module
from mindspeed_ms.backend.torchrun.options import (
    DRY_RUNS,
    FAULTS,
    LaunchError,
    Request,
    read,
    tell,
)
from mindspeed_ms.backend.torchrun.processes import Command, Outcome, Processes, last_lines

_FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT")
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_PATIENCE_SECONDS = 15.0
_USER_ERROR = 2
"""How entry points end after a user's mistake, which another start does not mend."""
_OTHER_MODELS = re.compile(r"bert|t5|_ict|biencoder|retro|mamba|hybrid|vlm|vision|multimodal|llava")
"""In names of Megatron's scripts for models that are no GPT."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The part of a job that runs on this host."""

    world_size: int
    local_size: int
    first_rank: int | None
    """Global number of the first rank here; None: the scheduler numbers the ranks."""
    is_master: bool
    """The scheduler runs here."""
    host: str
    port: int
    words: tuple[str, ...]
    """Script, or ``-m`` and module, and its arguments."""
    log_dir: Path
    log_name: str = "worker"
    timeout: int | None = None
    """Seconds to wait for all ranks at the start; None: the default."""
    picks_port: bool = False
    shown: tuple[int, ...] | None = None
    prefixes: tuple[tuple[str, ...], ...] = ()
    """For each rank here, words before its command."""
    is_counted: bool = True
    """The number of ranks is known; a plan without it takes the fewest that its layout needs."""


def part_of(request: Request) -> Part:
    """What a request means for this host.

    Raises:
        LaunchError: it cannot be followed.
    """
    module = ("-m",) if request.is_module else ()
    node = request.node_rank or 0
    is_alone = request.is_local or env.is_dry_run()  # other hosts need not be there for a plan
    return Part(
        world_size=request.world_size,
        local_size=request.ranks_per_node,
        first_rank=node * request.ranks_per_node,
        is_master=node == 0,
        host="127.0.0.1" if is_alone else master_address(request.master_addr, node == 0),
        port=request.master_port,
        words=(*module, request.script, *request.script_args),
        log_dir=Path(request.log_dir),
        picks_port=request.picks_port,
        shown=request.shown,
        is_counted=request.is_counted,
    )


def master_address(name: str, is_master: bool) -> str:
    """The address a master's name stands for.

    Raises:
        LaunchError: nobody knows it, or it leads another host to itself.
    """
    try:
        address = addresses.resolve(name)
    except OSError as error:
        raise LaunchError(
            f"--master-addr {name} is unknown on this host ({error.strerror}); give the address "
            "of the host with node rank 0"
        ) from None
    if addresses.is_loopback(address) and not is_master and name not in (address, "localhost"):
        raise LaunchError(
            f"--master-addr {name} is this host's own loopback address {address}; give the address "
            "of the host with node rank 0"
        )
    return address


def launch(request: Request) -> int:
    """Start the ranks of this host and wait for them.

    Returns:
        0, or the exit status of the rank that failed first.

    Raises:
        LaunchError: the request cannot be followed.
    """
    if request.is_module:
        require_module(request.script)
    else:
        refuse_other_files(request.script)
        if not os.path.isfile(request.script):
            module, *words = stand_in(request.script, request.script_args)
            request = replace(request, script=module, script_args=tuple(words), is_module=True)
    _check_node(request)
    for name in request.ignored:
        sys.stderr.write(f"torchrun: {name} changes nothing here\n")
    return run(part_of(request), request.max_restarts)


def run(part: Part, max_restarts: int, name: str = "torchrun") -> int:
    """Run this host's part of a job; a dry run, and a single rank, are plain Python.

    Returns:
        0, or the exit status of the rank that failed first.
    """
    words = set(part.words)
    is_dry = bool(DRY_RUNS & words)
    if env.is_dry_run():
        is_dry = True
        if part.is_counted:
            env.put(env.DRY_RUN_RANKS, part.world_size)
        else:
            env.remove(env.DRY_RUN_RANKS)
    elif is_dry and part.is_counted and not {"--world-size", "--world_size"} & words:
        part = replace(part, words=(*part.words, "--world-size", str(part.world_size)))
    if is_dry or part.world_size == 1:
        return supervise(0 if is_dry else max_restarts, lambda count: _alone(part, count), name)
    return supervise(max_restarts, lambda count: _ranks(part, count), name)


def _check_node(request: Request) -> None:
    if request.is_local or env.is_dry_run():
        return
    if request.node_rank is None:
        raise LaunchError(
            f"--nnodes {request.nodes} needs --node-rank; give each host its own number"
        )
    if request.node_rank >= request.nodes:
        raise LaunchError(
            f"--node-rank {request.node_rank} must be below --nnodes {request.nodes}; count from 0"
        )


def stand_in(script: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """The module, with its arguments, that a plan takes for a script that is not here.

    Raises:
        LaunchError: it is no plan, or the script trains no GPT.
    """
    if _OTHER_MODELS.search(Path(script).name):
        raise LaunchError(
            f"{script} trains another kind of model; those here are GPTs, which pretrain_gpt.py "
            "trains"
        )
    is_plan = env.is_dry_run() or bool(DRY_RUNS.intersection(arguments))
    if not is_plan or not script.endswith(".py"):
        raise LaunchError(f"there is no script {script}; check the path")
    sys.stderr.write(f"{script} is not here; planned as pretrain_gpt.py\n")
    return ("mindspeed_ms.command", "train", *arguments)  # does the same from any folder


def supervise(max_restarts: int, start: Callable[[int], Processes], name: str = "torchrun") -> int:
    """Run a job, and again after a failure, until it ends well or there are no restarts left.

    A signal that ends the launcher, and a mistake of the user, are no reason to start again.

    Args:
        max_restarts: number of further starts.
        start: starts the processes; its argument counts the restarts before.
        name: of the launcher, for messages.

    Returns:
        The exit status of the last attempt; 128 and its number if a signal ended the launcher.
    """
    with Forwarding() as signals:
        env.set_default(launcher.JOB_VARIABLE, uuid.uuid4().hex)
        for count in range(max_restarts + 1):
            processes = start(count)
            signals.follow(processes)
            outcome = processes.wait()
            if signals.ending is not None:
                sys.stderr.write(f"{name}: ended by {signals.ending.name}\n")
                return 128 + signals.ending
            if outcome.status == 0:
                return 0
            _report(name, outcome)
            if outcome.status == _USER_ERROR or count == max_restarts:
                return outcome.status
            sys.stderr.write(f"{name}: restart {count + 1} of {max_restarts}\n")
            sys.stderr.flush()
    return outcome.status


def _report(name: str, outcome: Outcome) -> None:
    where = "" if outcome.log is None else f"; its last lines ({outcome.log}):"
    sys.stderr.write(f"{name}: {outcome.reason}{where}\n{last_lines(outcome.log)}")
    sys.stderr.flush()


class Forwarding(contextlib.AbstractContextManager["Forwarding"]):
    """While inside, signals to the launcher reach the ranks instead of ending it.

    Ctrl-C reaches them as SIGTERM, on which a run can save. The third signal that asks for the end
    ends everything at once.
    """

    def __init__(self) -> None:
        self.ending: signal.Signals | None = None
        """The first signal that asked for the end."""
        self._num_ending = 0
        self._processes: Processes | None = None
        self._before: dict[int, object] = {}

    def follow(self, processes: Processes) -> None:
        """From now on signals go to these processes; one that has come meanwhile, too."""
        self._processes = processes
        if self.ending is not None:
            processes.signal_ranks(signal.SIGTERM)

    def __enter__(self) -> Forwarding:
        for name in _FORWARDED:
            number = getattr(signal, name)
            self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number in _ENDING:
            self.ending = self.ending or signal.Signals(number)
            self._num_ending += 1
        if self._processes is None:
            return
        if self._num_ending >= 3:
            self._processes.kill()
        else:
            is_interrupt = number in (signal.SIGINT, signal.SIGHUP)
            self._processes.signal_ranks(signal.SIGTERM if is_interrupt else number)

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _alone(part: Part, restarts: int) -> Processes:
    """Plain Python, with the variables of a single rank."""
    variables: dict[str, str | int] = {
        **dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK"), 0),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), 1),
        "MASTER_ADDR": part.host,
        "MASTER_PORT": part.port,
        launcher.RESTARTS_VARIABLE: restarts,
    }
    texts = {name: str(value) for name, value in variables.items()}
    command = Command("rank 0", [sys.executable, *part.words], {**os.environ, **texts})
    return Processes([command])


def _ranks(part: Part, restarts: int) -> Processes:
    """Scheduler and ranks of this host."""
    port = free_port() if part.picks_port else part.port
    try:
        part.log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(
            f"the folder for logs {part.log_dir} cannot be made ({error.strerror}); name another"
        ) from None
    if restarts:
        _put_away_logs(part, restarts - 1)
    common = _common_variables(part, port, restarts)
    command = [sys.executable, "-u", worker.__file__, *part.words]
    commands = []
    for local_rank in range(part.local_size):
        variables = {**common, **_rank_variables(part, local_rank)}
        variables["MS_ROLE"] = "MS_WORKER"
        number = local_rank if part.first_rank is None else part.first_rank + local_rank
        prefix = part.prefixes[local_rank] if part.prefixes else ()
        log = part.log_dir / f"{part.log_name}_{number}.log"
        title = f"rank {number}" if part.first_rank is not None else f"local rank {number}"
        commands.append(Command(title, [*prefix, *command], variables, log))
    serve = None
    if part.is_master:
        serve = Command(
            "the scheduler",
            [sys.executable, "-u", "-m", scheduler.MODULE],
            {**common, "MS_ROLE": "MS_SCHED"},
            part.log_dir / "scheduler.log",
            dies_with_launcher=False,
        )
    numbers = None
    if part.first_rank is not None:
        numbers = range(part.first_rank, part.first_rank + part.local_size)

    def tell_master(position: int, status: int, is_known: Callable[[], bool]) -> None:
        """If the job has not begun, the others need not wait for a rank that has ended here."""
        rank = None if part.first_rank is None else part.first_rank + position
        reason = f"ended with status {status} before it had connected"
        report_gone(part.host, port, rank, reason, _PATIENCE_SECONDS, is_known)

    return Processes(commands, serve, numbers, part.shown, None if part.is_master else tell_master)


def _common_variables(part: Part, port: int, restarts: int) -> dict[str, str]:
    variables = {
        **os.environ,
        launcher.PID_VARIABLE: str(os.getpid()),
        "MS_WORKER_NUM": str(part.world_size),
        "MS_SCHED_HOST": part.host,
        "MS_SCHED_PORT": str(port),
        "RANK_SIZE": str(part.world_size),
        "WORLD_SIZE": str(part.world_size),
        "LOCAL_WORLD_SIZE": str(part.local_size),
        "MASTER_ADDR": part.host,
        "MASTER_PORT": str(port),
        launcher.RESTARTS_VARIABLE: str(restarts),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(scheduler.package_path()),
    }
    if part.timeout is not None:
        variables["MS_TOPO_TIMEOUT"] = str(part.timeout)
    if part.local_size == part.world_size:
        variables.setdefault(SECRET, new_secret())
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "RANK_ID", "DEVICE_ID", "MS_NODE_ID"):
        variables.pop(name, None)
    return variables


def _rank_variables(part: Part, local_rank: int) -> dict[str, str]:
    variables = {"LOCAL_RANK": local_rank, "DEVICE_ID": local_rank}
    if part.first_rank is not None:
        rank = part.first_rank + local_rank
        group = rank // part.local_size
        variables |= {"RANK": rank, "GROUP_RANK": group, "RANK_ID": rank, "MS_NODE_ID": rank}
    return {name: str(value) for name, value in variables.items()}


def _put_away_logs(part: Part, attempt: int) -> None:
    """Keep the logs of the attempt before."""
    folder = part.log_dir / f"attempt_{attempt}"
    folder.mkdir(exist_ok=True)
    for log in (*part.log_dir.glob(f"{part.log_name}_*.log"), part.log_dir / "scheduler.log"):
        if log.exists():
            os.replace(log, folder / log.name)


def free_port() -> int:
    """A port of this host that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(prog: str = "torchrun", words: Sequence[str] | None = None) -> int:
    """Entry point of the launcher commands; ``--bin-dir`` prints the directory for PATH."""
    words = sys.argv[1:] if words is None else words
    if list(words) == ["--bin-dir"]:
        sys.stdout.write(f"{Path(__file__).with_name('bin')}\n")
        return 0
    try:
        return launch(read(prog, words, os.environ))
    except FAULTS as error:
        return tell(prog, error)


if __name__ == "__main__":
    raise SystemExit(main())
