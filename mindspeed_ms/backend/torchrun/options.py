# SPDX-License-Identifier: Apache-2.0
"""The command lines of torch's launchers, read into one request."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mindspeed_ms.backend import env
from mindspeed_ms.backend.plain_parser import PlainParser
from mindspeed_ms.backend.torchrun.unfilled import COUNTS, filled

DEFAULT_PORT = 29500
_IGNORED_VALUES = (
    "--rdzv-backend",
    "--rdzv-id",
    "--rdzv-conf",
    "--monitor-interval",
    "--start-method",
    "--event-log-handler",
    "--logs-specs",
    "--local-addr",
    "--numa-binding",
    "--role",
    "--redirects",
    "--tee",
    "--signals-to-handle",
    "--duplicate-stdout-filters",
    "--duplicate-stderr-filters",
    "--fault-tol-cfg-path",
)
"""Options with a value that changes nothing here; e.g. every rank has a log anyway."""
DRY_RUNS = frozenset(("--dry-run", "--dry_run"))
"""Arguments of a script that ask for a plan."""
_SHORT = {"--redirects": "-r", "--tee": "-t"}
_IGNORED_SWITCHES = (
    "--use-env",
    "--virtual-local-rank",
    "--no-use-env",
    "--ignore-missing-fault-tol-cfg",
    "--ignore-missing-cfg",
)


class LaunchError(ValueError):
    """A launcher command line that cannot be followed: given, rule, fix."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a launcher is asked to do."""

    nodes: int
    ranks_per_node: int
    node_rank: int | None
    master_addr: str
    master_port: int
    script: str
    script_args: tuple[str, ...]
    is_module: bool = False
    log_dir: str = "msrun_log"
    is_local: bool = True
    """All ranks run on this host, so the port may be replaced by a free one (``--standalone``)."""
    picks_port: bool = False
    max_restarts: int = 0
    """How often the job is started again after a rank has died."""
    shown: tuple[int, ...] | None = None
    """Local ranks whose output is shown; None: all."""
    ignored: tuple[str, ...] = ()
    """Given options that change nothing."""
    is_counted: bool = True
    """The number of ranks is known; in a plan it need not be."""

    @property
    def world_size(self) -> int:
        """Ranks on all hosts."""
        return self.nodes * self.ranks_per_node


FAULTS = (LaunchError, OSError)
"""What a launcher tells in one line."""


def tell(program: str, error: Exception) -> int:
    """Write what a user did wrong, or what the system says of a file; the exit status."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    sys.stderr.write(f"{program}: error: {' '.join(text.split())}\n")
    return 2


class LaunchParser(PlainParser):
    """The parser of a launcher's command line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise instead of leaving, so that the caller prints one line."""
        raise LaunchError(message)


def _both(name: str) -> list[str]:
    """A long option with dashes and with underscores."""
    return list(dict.fromkeys((name, "--" + name[2:].replace("-", "_"))))


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The options of ``torchrun``, ``torch.distributed.launch`` and ``ft_launcher``."""
    parser = LaunchParser(
        prog=prog,
        allow_abbrev=False,
        description="Start a training script on several ranks with msrun, in torchrun's words.",
    )
    parser.add_argument("--nnodes", default=None, help="hosts (a range is refused)")
    parser.add_argument(*_both("--nproc-per-node"), default=None, help="ranks per host, or auto")
    parser.add_argument(*_both("--node-rank"), default=None, help="number of this host")
    parser.add_argument(*_both("--master-addr"), default=None, help="host of rank 0")
    parser.add_argument(*_both("--master-port"), default=None, help="a free port there")
    parser.add_argument(*_both("--rdzv-endpoint"), default=None, help="host:port of rank 0")
    parser.add_argument("--standalone", action="store_true", help="this host only, any port")
    parser.add_argument("-m", "--module", action="store_true", help="the script is a module")
    parser.add_argument(*_both("--no-python"), action="store_true", help="refused")
    parser.add_argument(*_both("--run-path"), action="store_true", help="same as without")
    parser.add_argument(*_both("--log-dir"), default=None, help="folder of the ranks' logs")
    parser.add_argument(*_both("--local-ranks-filter"), default=None, help="ranks to show")
    parser.add_argument(*_both("--max-restarts"), default=None, help="new starts after a failure")
    for name in _IGNORED_VALUES:
        short = [_SHORT[name]] if name in _SHORT else []
        parser.add_argument(*short, *_both(name), default=None, help="accepted, changes nothing")
    for name in _IGNORED_SWITCHES:
        parser.add_argument(*_both(name), action="store_true", help="accepted, changes nothing")
    parser.add_argument("script", help="the training script, or a module with -m")
    parser.add_argument("script_args", nargs=argparse.REMAINDER, help="its own arguments")
    return parser


def read(prog: str, words: Sequence[str], environment: Mapping[str, str]) -> Request:
    """Read a launcher's command line.

    Args:
        prog: name of the launcher, for messages.
        words: its arguments.
        environment: variables; ``PET_*`` are torchrun's defaults of options.

    Raises:
        LaunchError: an option that has no meaning here, or a value that is no number.
    """
    clean, missing = filled(words, _takes_value)
    if env.is_dry_run() or DRY_RUNS.intersection(words):
        words = clean
        for name in missing:
            sys.stderr.write(f"{prog}: {name} has no value, and a plan does without\n")
    elif missing:
        raise LaunchError(f"{missing[0]} has no value; a variable of the script may be empty")
    own, rest = _without_fault_options(words)
    given = build_parser(prog).parse_args(own)
    if given.no_python:
        raise LaunchError("--no-python is refused: ranks are Python processes; name the script")
    nodes = count("--nnodes", given.nnodes or environment.get("PET_NNODES"), 1)
    per_node = given.nproc_per_node or environment.get("PET_NPROC_PER_NODE") or "1"
    node_rank = given.node_rank or environment.get("PET_NODE_RANK")
    address, port = _endpoint(given, environment)
    restarts = given.max_restarts or environment.get("PET_MAX_RESTARTS")
    ranks = _ranks_per_node(per_node, environment)
    shown = given.local_ranks_filter or environment.get("PET_LOCAL_RANKS_FILTER")
    return Request(
        nodes=nodes,
        ranks_per_node=ranks or 1,
        node_rank=None if node_rank is None else count("--node-rank", node_rank, 0, minimum=0),
        master_addr="127.0.0.1" if nodes == 1 and given.standalone else address,
        master_port=port,
        script=given.script,
        script_args=tuple(given.script_args),
        is_module=given.module,
        log_dir=given.log_dir or environment.get("PET_LOG_DIR") or "msrun_log",
        is_local=nodes == 1,
        picks_port=nodes == 1 and (given.standalone or port == 0),
        max_restarts=count("--max-restarts", restarts, 0, minimum=0),
        shown=_list_of_ranks("--local-ranks-filter", shown),
        ignored=tuple(_ignored(given)) + tuple(rest),
        is_counted=ranks is not None and not set(COUNTS) & set(missing),
    )


def _without_fault_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take ``--ft-...`` options of ``ft_launcher`` out, up to the script."""
    own: list[str] = []
    taken: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("-") and (not own or not _takes_value(own[-1])):
            return [*own, *words[position:]], taken
        if word.startswith(("--ft-", "--ft_")):
            taken.append(word.partition("=")[0])
            follows = position + 1 < len(words) and not words[position + 1].startswith("-")
            if "=" not in word and follows and not words[position + 1].endswith(".py"):
                position += 1
        else:
            own.append(word)
        position += 1
    return own, taken


_SWITCHES = {"--standalone", "-m", "--module", "--no-python", "--run-path", *_IGNORED_SWITCHES}


def _takes_value(word: str) -> bool:
    is_option = word.startswith("-") and "=" not in word
    return is_option and "--" * word.startswith("--") + word.lstrip("-").replace("_", "-") not in (
        _SWITCHES | {"m"}
    )


def _ignored(given: argparse.Namespace) -> list[str]:
    names = [*_IGNORED_VALUES, *_IGNORED_SWITCHES]
    return [
        name for name in names if getattr(given, name[2:].replace("-", "_")) not in (None, False)
    ]


def count(name: str, text: str | None, default: int, minimum: int = 1) -> int:
    """Return the number an option states, or its default where nothing is stated.

    Raises:
        LaunchError: it is no number, or too small.
    """
    if text is None or text == "":
        return default
    if ":" in text:
        first, _, last = text.partition(":")
        if first != last:
            raise LaunchError(
                f"{name} {text} is a range, but the number of hosts is fixed; give one number"
            )
        text = first
    if not text.isdigit() or int(text) < minimum:
        raise LaunchError(f"{name} is {text!r}, but must be a number of at least {minimum}")
    return int(text)


def _list_of_ranks(name: str, text: str | None) -> tuple[int, ...] | None:
    if not text:
        return None
    return tuple(count(name, word.strip(), 0, minimum=0) for word in text.split(","))


def _ranks_per_node(text: str, environment: Mapping[str, str]) -> int | None:
    """Ranks of this host; None if a plan is asked for and its devices are elsewhere."""
    if text not in ("auto", "gpu", "npu", "cpu"):
        return count("--nproc-per-node", text, 1)
    visible = environment.get("ASCEND_RT_VISIBLE_DEVICES")
    devices = len(visible.split(",")) if visible else len(glob.glob("/dev/davinci[0-9]*"))
    if not devices and text != "cpu" and env.is_dry_run():
        return None
    if text == "cpu" or (text == "auto" and not devices):
        return int(environment.get("SLURM_CPUS_ON_NODE") or 1)
    if not devices:
        raise LaunchError(
            f"--nproc-per-node {text} counts this host's accelerators, but there are none; give a "
            "number"
        )
    return devices


def _endpoint(given: argparse.Namespace, environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port of rank 0: the rendezvous endpoint, or the master's options."""
    address = given.master_addr or environment.get("PET_MASTER_ADDR")
    port = given.master_port or environment.get("PET_MASTER_PORT")
    endpoint = given.rdzv_endpoint or environment.get("PET_RDZV_ENDPOINT") or ""
    if endpoint:
        host, _, text = endpoint.rpartition(":") if ":" in endpoint else (endpoint, "", "")
        address, port = address or host.strip("[]"), port or text
    number = count("--master-port", port, DEFAULT_PORT, minimum=0)
    if number and not 1024 <= number <= 65535:
        raise LaunchError(f"--master-port {number} must lie between 1024 and 65535; 29500 is usual")
    return address or "127.0.0.1", number
