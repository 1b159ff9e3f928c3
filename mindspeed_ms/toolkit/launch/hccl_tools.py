# SPDX-License-Identifier: Apache-2.0
"""Make the rank table of this host.

python -m mindspeed_ms.toolkit.launch.hccl_tools --device_num "[0,8)"

Addresses of the devices come from ``hccn_tool`` or ``/etc/hccn.conf``. A host with neither has no
NPU: its table says ``reserve`` instead, and serves ranks on CPU.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mindspeed_ms.backend.rank_table import (
    LOOPBACK,
    RESERVED,
    Device,
    RankTable,
    Server,
    is_address,
)
from mindspeed_ms.files.whole import write_text
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

HCCN_CONF = Path("/etc/hccn.conf")


def parse_range(text: str) -> range:
    """Read a range of devices; the end is never part of it.

    >>> list(parse_range("[0,4)")), len(parse_range("[8, 24]"))
    ([0, 1, 2, 3], 16)

    Raises:
        ValueError: it is written in another way, or empty.
    """
    found = re.fullmatch(r"\s*\[\s*(\d+)\s*,\s*(\d+)\s*[)\]]\s*", text)
    if found is None:
        raise ValueError(
            f'--device_num is {text!r}; write "[first,end)", e.g. "[0,8)" for devices 0 to 7'
        )
    devices = range(int(found[1]), int(found[2]))
    if not devices:
        raise ValueError(
            f"--device_num {text} holds no device: the end is not part of it and must be larger "
            "than the start"
        )
    return devices


def parse_visible(text: str) -> list[int]:
    """Read the devices that may be used, ``0,1,2,3``.

    Raises:
        ValueError: one is no number, or there twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) != len(words):
        raise ValueError(
            f"--visible_devices is {text!r}; write different numbers with commas between, 0,1,2"
        )
    return [int(word) for word in words]


def choose_devices(wanted: range, visible: Sequence[int] | None) -> list[int]:
    """Device numbers of a range; with ``visible`` the range counts along that list.

    Raises:
        ValueError: the range is longer than the list.
    """
    if visible is None:
        return list(wanted)
    if wanted.stop > len(visible):
        raise ValueError(
            f"--device_num [{wanted.start},{wanted.stop}) needs {wanted.stop} visible devices, but "
            f"--visible_devices lists {len(visible)}; name more of them, or lower the end"
        )
    return [visible[index] for index in wanted]


def make_table(devices: Sequence[int], server_ip: str, addresses: Mapping[int, str]) -> RankTable:
    """The table of one server; ranks count along its devices.

    Raises:
        ValueError: some devices have an address and some have none.
    """
    missing = [device for device in devices if device not in addresses]
    if addresses and missing:
        raise ValueError(
            f"device {missing[0]} has no network address on this host; known are devices "
            f"{', '.join(map(str, sorted(addresses)))}: choose among them"
        )
    return RankTable(
        (
            Server(
                server_ip,
                tuple(
                    Device(device, addresses.get(device, RESERVED), rank)
                    for rank, device in enumerate(devices)
                ),
            ),
        )
    )


def file_name(table: RankTable) -> str:
    """Name of the file of a table: ``hccl_4p_0123_10.0.0.1.json``, ``hccl_4s_32p.json``."""
    count = len(table.devices)
    if len(table.servers) > 1:
        return f"hccl_{len(table.servers)}s_{count}p.json"
    numbers = "".join(str(device.device_id) for device in table.devices)
    return f"hccl_{count}p_{numbers}_{table.servers[0].server_id}.json"


def write_table(table: RankTable, folder: Path) -> Path:
    """Write a table into a folder under its usual name; return the file's path."""
    path = folder / file_name(table)
    write_text(path, json.dumps(table.to_document(), indent=2) + "\n")
    return path


def device_addresses(devices: Sequence[int]) -> dict[int, str]:
    """Network address by device number, as far as this host tells; empty without an NPU."""
    tool = shutil.which("hccn_tool")
    if tool is not None:
        answers = {device: _ask_hccn(tool, device) for device in devices}
        found = {device: address for device, address in answers.items() if address}
        if found:
            return found
    if not HCCN_CONF.is_file():
        return {}
    lines = HCCN_CONF.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = (re.fullmatch(r"\s*address_(\d+)\s*=\s*(\S+)\s*", line) for line in lines)
    return {int(entry[1]): entry[2] for entry in entries if entry}


def _ask_hccn(tool: str, device: int) -> str | None:
    words = [tool, "-i", str(device), "-ip", "-g"]
    answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"ipaddr:\s*(\S+)", answer.stdout)
    return found[1] if found else None


def host_address(has_npu: bool) -> str:
    """Address of this host; loopback without an NPU, where several hosts are the exception.

    Raises:
        ValueError: the host's name has no address.
    """
    if not has_npu:
        return LOOPBACK
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        raise ValueError(
            f"the address of host {socket.gethostname()} is not known ({error}); give --server_ip"
        ) from None


def main(words: Sequence[str] | None = None) -> int:
    """Write the table into the working directory; return the exit status."""
    parser = Parser(prog="hccl_tools", description=__doc__, formatter_class=_RAW)
    parser.add_argument(
        "--device_num", default="[0,8)", help='devices of this host, default "[0,8)"'
    )
    parser.add_argument(
        "--visible_devices", help="devices the range counts along, 0,1,2,...; default: all"
    )
    parser.add_argument("--server_ip", help="address of this host; default: found out")
    with user_errors("hccl_tools"):
        given = parser.parse_args(words)
        visible = None if given.visible_devices is None else parse_visible(given.visible_devices)
        devices = choose_devices(parse_range(given.device_num), visible)
        addresses = device_addresses(devices)
        server_ip = host_address(bool(addresses)) if given.server_ip is None else given.server_ip
        if not is_address(server_ip):
            raise ValueError(f"--server_ip is {server_ip!r}; give the address of this host")
        path = write_table(make_table(devices, server_ip, addresses), Path.cwd())
        if not addresses:
            sys.stdout.write(
                "no NPU address found (hccn_tool, /etc/hccn.conf): device_ip is 'reserve', the "
                "table serves ranks on CPU\n"
            )
        sys.stdout.write(f"rank table of {len(devices)} devices: {path}\n")
    return 0


_RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    raise SystemExit(main())
