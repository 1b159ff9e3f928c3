# SPDX-License-Identifier: Apache-2.0
"""The command line of DeepSpeed's launcher, followed by the launcher of this package.

DeepSpeed starts the other hosts itself, over ``ssh``; here every host starts its own ranks, as with
DeepSpeed's ``--no_ssh``. A plan needs one host.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mindspeed_ms.backend import env
from mindspeed_ms.backend.torchrun.options import (
    FAULTS,
    LaunchError,
    LaunchParser,
    Request,
    count,
    read,
    tell,
)
from mindspeed_ms.backend.torchrun.run import launch

_HOSTS = Path("/job/hostfile")
_HOST_LINE = re.compile(r"(\S+) slots=0*([1-9][0-9]{0,3})")
_MOST_SLOTS = 9999
_IGNORED = (
    *("--launcher", "--launcher_args", "--autotuning", "--elastic_training", "--bind_core_list"),
    *("--enable_each_rank_log", "--min_elastic_nodes", "--max_elastic_nodes", "--ssh_port"),
    *("--venv_script",),
)
_IGNORED_SWITCHES = (
    *("--no_local_rank", "--save_pid", "--force_multi", "--bind_cores_to_rank", "--no_ssh_check"),
)


def build_parser() -> LaunchParser:
    """The options of ``deepspeed``."""
    parser = LaunchParser(
        prog="deepspeed",
        allow_abbrev=False,
        description="Start a training script on several ranks, in the words of DeepSpeed.",
    )
    parser.add_argument("-H", "--hostfile", help="lines of the form: host slots=ranks")
    parser.add_argument("-i", "--include", help="host:0,1@host:2; the ranks of these alone")
    parser.add_argument("-e", "--exclude", help="the same form; these are left out")
    parser.add_argument("--num_nodes", help="hosts")
    parser.add_argument("--num_gpus", "--num_accelerators", help="ranks per host")
    parser.add_argument("--node_rank", help="number of this host")
    parser.add_argument("--no_ssh", action="store_true", help="every host starts its own ranks")
    parser.add_argument("--master_addr", help="host of rank 0")
    parser.add_argument("--master_port", help="a free port there")
    parser.add_argument("--module", action="store_true", help="the script is a module")
    parser.add_argument("--no_python", action="store_true", help="refused")
    for name in _IGNORED:
        parser.add_argument(name, help="accepted, changes nothing")
    for name in _IGNORED_SWITCHES:
        parser.add_argument(name, action="store_true", help="accepted, changes nothing")
    parser.add_argument("script", help="the training script")
    parser.add_argument("script_args", nargs="...", help="its own arguments")
    return parser


def requested(words: Sequence[str], environment: Mapping[str, str]) -> Request:
    """What a command line of DeepSpeed asks for.

    Raises:
        LaunchError: it cannot be followed.
    """
    given = build_parser().parse_args(words)
    if given.no_python:
        raise LaunchError("--no_python is refused: ranks are Python processes; name the script")
    hosts = _chosen(_hosts(given.hostfile), given.include, given.exclude)
    nodes = count("--num_nodes", given.num_nodes, len(hosts) or 1)
    names = list(hosts)[:nodes] if hosts else []
    slots = {hosts[name] for name in names}
    if given.num_gpus is None and len(slots) > 1:
        raise LaunchError(
            f"the hosts have {sorted(slots)} slots, but all have as many ranks; give --num_gpus"
        )
    ranks = given.num_gpus or (str(slots.pop()) if slots else "auto")
    if nodes > 1 and given.node_rank is None and not env.is_dry_run():
        raise LaunchError(
            f"{nodes} hosts are started one by one; run this on each with --no_ssh and its own "
            "--node_rank"
        )
    said = ["--nnodes", str(nodes), "--nproc-per-node", ranks]
    if given.node_rank:
        said += ["--node-rank", given.node_rank]
    if given.master_addr or names:
        said += ["--master-addr", given.master_addr or names[0]]
    if given.master_port:
        said += ["--master-port", given.master_port]
    said += ["-m"] if given.module else []
    return read("deepspeed", [*said, given.script, *given.script_args], environment)


def _hosts(path: str | None) -> dict[str, int]:
    """Host -> ranks, as a host file says; a file that is not there means this host alone."""
    file = Path(path) if path else _HOSTS
    if not os.path.lexists(file):
        if path:
            sys.stderr.write(f"deepspeed: there is no host file {path}; this host alone is used\n")
        return {}
    if os.path.exists(file) and not os.path.isfile(file):  # a pipe would be waited for
        raise LaunchError(f"the host file {file} is no regular file; name the text file")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"the host file {file} cannot be read: {error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        match = _HOST_LINE.fullmatch(" ".join(words))
        if match is None:
            raise LaunchError(
                f"line {number} of {file} is {line.strip()!r:.80}, not of the form host slots=8 "
                f"with 1 to {_MOST_SLOTS} ranks; mend it"
            )
        if match[1] in hosts:
            raise LaunchError(f"{file} names host {match[1]} twice; keep one of the lines")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise LaunchError(f"{file} names no host; write a line such as host slots=8 for each")
    return hosts


def _chosen(hosts: dict[str, int], include: str | None, exclude: str | None) -> dict[str, int]:
    """Apply ``--include`` or ``--exclude``: ``host``, or ``host:0,1``, joined by ``@``."""
    if include and exclude:
        raise LaunchError("--include and --exclude exclude each other; keep one of them")
    flag, text = ("--include", include) if include else ("--exclude", exclude or "")
    asked: dict[str, int] = {}
    for part in filter(None, (text or "").split("@")):
        name, colon, ranks = part.partition(":")
        numbers = ranks.split(",") if colon else []
        if not name or not all(one.isascii() and one.isdecimal() for one in numbers):
            raise LaunchError(f"{flag} {part!r:.80} is not of the form host or host:0,1; mend it")
        if hosts and name not in hosts:
            raise LaunchError(f"{flag} names host {name!r:.80}, which is not in the host file")
        beyond = [one for one in numbers if hosts and int(one[:9]) >= hosts[name]]
        if beyond:
            raise LaunchError(
                f"{flag} names rank {beyond[0]:.9} of {name}, which has {hosts[name]} slots"
            )
        asked[name] = len(set(numbers)) if colon else hosts.get(name, 0)
    if include:
        return asked if all(asked.values()) else {}
    kept = {name: slots - asked.get(name, 0) for name, slots in hosts.items()}
    return {name: slots for name, slots in kept.items() if slots > 0}


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    try:
        return launch(requested(sys.argv[1:] if words is None else words, os.environ))
    except FAULTS as error:
        return tell("deepspeed", error)


if __name__ == "__main__":
    raise SystemExit(main())
