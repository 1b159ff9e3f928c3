# SPDX-License-Identifier: Apache-2.0
"""``mindspeed-msrun``: the words of ``msrun``, with honest exit statuses and new starts.

MindSpore's ``msrun`` ends with status 0 on Ctrl-C and with 1 for whatever a rank ended with; when
it is killed, its ``tail`` processes stay, and a failed job is not started again.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_ms.backend import addresses, env, launcher
from mindspeed_ms.backend.torchrun.modules import refuse_other_files, require_module
from mindspeed_ms.backend.torchrun.options import FAULTS, LaunchError, LaunchParser, tell
from mindspeed_ms.backend.torchrun.run import Part, master_address, run, stand_in

_REFUSED = {
    "sim_level": "plan with --dry-run among the script's arguments",
    "sim_rank_id": "plan with --dry-run among the script's arguments",
}
_NUMBERS = {
    "worker_num": (8, 1),
    "local_worker_num": (8, 0),
    "master_port": (8118, 1024),
    "node_rank": (-1, -1),
    "cluster_time_out": (600, -1),
    "max_restarts": (0, 0),
}
"""Option -> default and smallest value."""
_DEFAULTS = {"master_addr": "127.0.0.1", "worker_log_name": "worker", "tail_worker_log": "-1"}
_CLUSTER = "mindspore.parallel.cluster"


def build_parser() -> argparse.ArgumentParser:
    """The options of ``msrun``, and ``--max_restarts``."""
    parser = LaunchParser(
        prog="mindspeed-msrun",
        allow_abbrev=False,
        description="Start a script on several ranks in msrun's words; --join is always True.",
    )
    for name in launcher.MSRUN_OPTIONS:
        parser.add_argument(f"--{name}", default=_DEFAULTS.get(name))
    parser.add_argument("--max_restarts", "--max-restarts", help="new starts after a failure")
    parser.add_argument("script", help="the training script")
    parser.add_argument("script_args", nargs=argparse.REMAINDER, help="its own arguments")
    return parser


def read(words: Sequence[str]) -> tuple[Part, int]:
    """What a command line asks for: this host's part of the job, and the number of restarts.

    Raises:
        LaunchError: it cannot be followed.
    """
    given = build_parser().parse_args(words)
    for name, instead in _REFUSED.items():
        if getattr(given, name) not in (None, "-1"):
            raise LaunchError(f"--{name} is MindSpore's own; {instead}, or use msrun")
    numbers = {name: _number(given, name) for name in _NUMBERS}
    world, local = numbers["worker_num"], numbers["local_worker_num"]
    if local > world:
        raise LaunchError(
            f"--local_worker_num {local} is more than --worker_num {world}; give the ranks of "
            "this host, and of all hosts"
        )
    node = 0 if local == world else numbers["node_rank"]
    is_alone = local == world or env.is_dry_run()  # other hosts need not be there for a plan
    host = "127.0.0.1" if is_alone else master_address(given.master_addr, node == 0)
    part = Part(
        world_size=world,
        local_size=local,
        first_rank=node * local if node >= 0 else None,
        is_master=node == 0 or (node < 0 and addresses.is_own(host)),
        host=host,
        port=numbers["master_port"],
        words=_script(given.script, given.script_args),
        log_dir=Path(given.log_dir or "."),
        log_name=_log_name(given.worker_log_name, host),
        timeout=numbers["cluster_time_out"],
        shown=_shown(given.tail_worker_log),
        prefixes=_bindings(given, local),
    )
    return part, numbers["max_restarts"]


def _number(given: argparse.Namespace, name: str) -> int:
    (default, minimum), text = _NUMBERS[name], getattr(given, name)
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        number = minimum - 1
    if number < minimum:
        raise LaunchError(f"--{name} is {text!r}, but must be a number of at least {minimum}")
    return number


def _script(script: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """``msrun`` takes a script, or a program before it."""
    if script == "pytest":
        return ("-m", "pytest", *arguments)
    words = tuple(arguments) if script in ("python", "python3") else (script, *arguments)
    if not words:
        raise LaunchError(f"{script} needs a script; name it")
    if words[0] == "-m":
        require_module(words[1] if len(words) > 1 else "")
        return words
    refuse_other_files(words[0])
    if not os.path.isfile(words[0]):
        return ("-m", *stand_in(words[0], words[1:]))
    return words


def _log_name(pattern: str, host: str) -> str:
    name = pattern.replace("{hostname}", socket.gethostname())
    return name.replace("{ip}", addresses.towards(host)) if "{ip}" in name else name


def _shown(text: str) -> tuple[int, ...] | None:
    if text == "-1":
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise LaunchError(f"--tail_worker_log is {text!r}, but must be -1 or ranks like 0,1")
    return tuple(map(int, words))


def _bindings(given: argparse.Namespace, local_size: int) -> tuple[tuple[str, ...], ...]:
    """For each rank the words with which ``msrun`` would bind it to cores or memory."""
    if given.bind_core is None and given.bind_numa is None:
        return ()
    front = importlib.import_module(f"{_CLUSTER}.run")  # slow, and private: only where asked for
    bind = importlib.import_module(f"{_CLUSTER}.process_entity._bind")
    utils = importlib.import_module(f"{_CLUSTER}.process_entity._utils")
    try:
        core = front._parse_and_validate_bind_core(given.bind_core or "False")
        numa = front._parse_and_validate_bind_numa(given.bind_numa or "False")
        context = bind._generate_bind_context(local_size, numa, core)
        commands = [utils._generate_cmd("python", [], rank, context) for rank in range(local_size)]
    except (argparse.ArgumentTypeError, ValueError, RuntimeError, OSError) as error:
        raise LaunchError(f"--bind_core or --bind_numa cannot be followed: {error}") from None
    return tuple(tuple(command[:-1]) for command in commands)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    name = "mindspeed-msrun"
    words = sys.argv[1:] if words is None else words
    try:
        part, max_restarts = read(words)
        table = build_parser().parse_args(words).rank_table_file
        if table:
            os.environ["RANK_TABLE_FILE"] = table
        return run(part, max_restarts, name)
    except FAULTS as error:
        return tell(name, error)


if __name__ == "__main__":
    raise SystemExit(main())
