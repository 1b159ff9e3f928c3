# SPDX-License-Identifier: Apache-2.0
"""Running the launch scripts as a user does: their environment, their rank tables, their logs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from jobs import free_port

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
SINGLE, MULTI = "run_distribute_single_node.sh", "run_distribute_multi_node.sh"


def environment(**more):
    """This environment without traces of a launcher; ``python`` is this one."""
    launchers = ("MS_", "PMI", "OMPI", "SLURM", "RANK", "DEVICE_ID", "WAIT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "MS_SCHED_PORT": str(free_port())}
    return {**kept, **own, **more}


def run(script, words, folder, timeout=120, **variables):
    return subprocess.run(
        ["bash", str(script), *map(str, words)],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def write_table(folder, servers=("127.0.0.1",), devices=2):
    """A table under the name the guide's commands use; return the name."""
    listed = [
        {
            "server_id": server,
            "device": [
                {"device_id": str(d), "device_ip": "reserve", "rank_id": str(s * devices + d)}
                for d in range(devices)
            ],
            "host_nic_ip": "reserve",
        }
        for s, server in enumerate(servers)
    ]
    content = {"version": "1.0", "server_count": str(len(servers)), "server_list": listed}
    name = "hccl_4p_0123_127.0.0.1.json"
    (folder / name).write_text(json.dumps({**content, "status": "completed"}))
    return name


def logs(folder, ranks):
    """What every rank wrote."""
    return [(folder / f"output/log/rank_{r}/mindformer.log").read_text() for r in range(ranks)]


def losses(text):
    """The loss of every step in a log."""
    return [float(found) for found in re.findall(r"lm loss: (\S+) \|", text)]
