# SPDX-License-Identifier: Apache-2.0
"""``srun``, ``mpirun``, ``mpiexec`` and ``numactl`` for plans: the command runs once, here.

Only ``MINDSPEED_MS_DRY_RUN`` leads here; otherwise the commands of these names are the host's own.
What they start is told how many tasks there would have been.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence

from mindspeed_ms.backend import env

_SWITCHES: Mapping[str, frozenset[str]] = {
    "srun": frozenset(
        "--label --unbuffered --kill-on-bad-exit --quiet --verbose --exclusive --oversubscribe "
        "--overcommit --overlap --contiguous --no-kill --immediate --hold --pty --multi-prog "
        "--spread-job --use-min-nodes --disable-status --exact --preserve-env --no-allocate "
        "--container-mount-home --no-container-mount-home --container-writable "
        "--container-readonly --no-container-entrypoint --container-entrypoint "
        "--container-remap-root --no-container-remap-root --no-requeue --wait-all-nodes".split()
    ),
    "mpirun": frozenset(
        "--allow-run-as-root --oversubscribe --tag-output --report-bindings --bind-to-none "
        "--display-map --nooversubscribe --bynode --byslot --verbose --quiet --use-hwthread-cpus "
        "-prepend-rank -print-all-exitcodes --line-buffer --no-vni --pmi".split()
    ),
    "numactl": frozenset("--all --hardware --show --huge --touch --localalloc -l -a".split()),
}
_LETTERS = {"srun": frozenset("luKQvEXsOIHkZ"), "mpirun": frozenset("qvl"), "numactl": frozenset()}
"""Short options without a value, which may be written together."""
_TWO_VALUES = ("-mca", "--mca", "-gmca", "--gmca", "-genv")
_TASKS = {
    "srun": ("-n", "--ntasks"),
    "mpirun": ("-n", "-np", "--np", "--n", "-c", "-ntasks"),
    "numactl": (),
}
_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
_FIRST = {
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
    "mpirun": _MPI,
    "mpiexec": _MPI,
}
"""Variables that tell a task that it is the first."""


def split(program: str, words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options of a program, and the command it was to start.

    >>> split("srun", ["-lu", "-N2", "--ntasks-per-node=8", "--wait", "60", "python", "x.py"])
    ({'-N': '2', '--ntasks-per-node': '8', '--wait': '60'}, ['python', 'x.py'])
    """
    kind = "mpirun" if program == "mpiexec" else program
    options: dict[str, str] = {}
    place = 0
    while place < len(words) and words[place].startswith("-"):
        word, place = words[place], place + 1
        name, equals, text = word.partition("=")
        if word == "--":
            break
        if equals:
            options[name] = text
        elif name in _SWITCHES[kind] or (name[1:] and set(name[1:]) <= _LETTERS[kind]):
            continue
        elif kind == "srun" and not name.startswith("--") and len(name) > 2:
            options[name[:2]] = name[2:]
        else:
            options[name] = words[place] if place < len(words) else ""
            place += 2 if name in _TWO_VALUES else 1
    return options, list(words[place:])


def num_tasks(program: str, options: Mapping[str, str]) -> int:
    """Tasks that a program would have started."""
    kind = "mpirun" if program == "mpiexec" else program
    stated = next((options[name] for name in _TASKS[kind] if name in options), "")
    if stated.isdigit():
        return int(stated)
    if kind != "srun":
        return 1
    nodes = options.get("-N") or options.get("--nodes") or env.get("SLURM_NNODES") or "1"
    per_node = options.get("--ntasks-per-node") or env.get("SLURM_NTASKS_PER_NODE") or ""
    if per_node.isdigit() and nodes.isdigit():
        return int(nodes) * int(per_node)
    tasks = env.get("SLURM_NTASKS") or nodes
    return int(tasks) if tasks.isdigit() else 1


def main(program: str, words: Sequence[str]) -> int:
    """Run the command once, as the first of the tasks."""
    options, command = split(program, words)
    if not command or shutil.which(command[0]) is None:
        what = f"there is no command {command[0]}" if command else "no command was given"
        sys.stderr.write(f"{program}: error: {what}; a plan runs it once on this host\n")
        return 2
    tasks = num_tasks(program, options)
    if program != "numactl":
        env.put(env.DRY_RUN_RANKS, tasks)
    for name in _FIRST.get(program, ()):
        env.put(name, 0)
    if program == "srun":
        env.put("SLURM_NTASKS", tasks)
        env.set_default("SLURM_JOB_ID", 1)
    elif program in ("mpirun", "mpiexec"):
        env.put("OMPI_COMM_WORLD_SIZE", tasks)
    os.execvp(command[0], command)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
