# SPDX-License-Identifier: Apache-2.0
"""Rank tables: which rank runs on which device of which server, and ranks started by them.

A launch script gives every process ``RANK_TABLE_FILE``, ``RANK_ID``, ``RANK_SIZE`` and
``DEVICE_ID``. Here they become the variables of ``msrun``; the lowest rank of the first server
starts the scheduler. Without ``RANK_TABLE_FILE`` all ranks are on this host.

Source: Huawei's documentation of the rank table file, version 1.0 (names and structure).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import env, msrun_worker

FILE_VARIABLE = "RANK_TABLE_FILE"
LOOPBACK = "127.0.0.1"
RESERVED = "reserve"
"""What stands in the table for an address nobody needs."""
_DEFAULT_PORT = 8118
"""MindSpore's own default of MS_SCHED_PORT."""


@dataclass(frozen=True, slots=True)
class Device:
    """One rank's place."""

    device_id: int
    """Number of the device on its server."""
    device_ip: str
    """Address of its network port; ``reserve`` where ranks compute on CPU."""
    rank_id: int


@dataclass(frozen=True, slots=True)
class Server:
    """One host and its devices, in the order of their ranks."""

    server_id: str
    """The host's address."""
    devices: tuple[Device, ...]
    host_nic_ip: str = RESERVED


@dataclass(frozen=True, slots=True)
class RankTable:
    """All ranks of a job; ranks count from 0 along the servers and their devices."""

    servers: tuple[Server, ...]
    version: str = "1.0"
    status: str = "completed"

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices of all servers: element r is rank r's."""
        return tuple(device for server in self.servers for device in server.devices)

    def to_document(self) -> dict[str, Any]:
        """The table as its JSON file holds it: every value is text."""
        return {
            "version": self.version,
            "server_count": str(len(self.servers)),
            "server_list": [
                {
                    "server_id": server.server_id,
                    "device": [
                        {
                            "device_id": str(device.device_id),
                            "device_ip": device.device_ip,
                            "rank_id": str(device.rank_id),
                        }
                        for device in server.devices
                    ],
                    "host_nic_ip": server.host_nic_ip,
                }
                for server in self.servers
            ],
            "status": self.status,
        }


# --- reading --------------------------------------------------------------------------------------


def read(path: str | Path) -> RankTable:
    """Read a rank table file.

    Raises:
        ValueError: it cannot be read, or is no complete table; the message names the file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device never ends
        raise ValueError(f"rank table {path} is no regular file; name the JSON file")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"rank table {path} cannot be read ({error.strerror}); check the path"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"rank table {path} is not JSON ({error}); make it anew") from None
    return parse(document, f"rank table {path}")


def parse(document: object, where: str = "rank table") -> RankTable:
    """Check the content of a rank table file.

    Args:
        document: what ``json.loads`` returned.
        where: what to call it in messages.

    Raises:
        ValueError: a key is missing, something is there twice, or ranks have gaps.
    """
    fields = _mapping(document, where)
    listed = fields.get("server_list")
    if not isinstance(listed, list) or not listed:
        raise ValueError(
            f"{where}: server_list is {listed!r:.60}; it must list at least one server"
        )
    servers = tuple(
        _server(item, f"{where}: server_list[{index}]") for index, item in enumerate(listed)
    )
    count = fields.get("server_count", len(servers))
    if str(count) != str(len(servers)):
        raise ValueError(
            f"{where}: server_count is {count!s:.60}, but server_list has {len(servers)} servers; "
            "correct one of them"
        )
    status = str(fields.get("status", "completed"))
    if status != "completed":
        raise ValueError(
            f"{where}: status is {status!r:.60}; only a completed table can be used, make it anew"
        )
    table = RankTable(servers, str(fields.get("version", "1.0")), status)
    _check(table, where)
    return table


def is_address(name: str) -> bool:
    """Whether a text can be the address of a host: an IP address, or a name.

    >>> is_address("10.0.0.1"), is_address("node-1.lan"), is_address("999.1.1.1"), is_address("a b")
    (True, True, False, False)
    """
    if re.fullmatch(r"[0-9.]+", name) or ":" in name:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
    return re.fullmatch(r"[A-Za-z0-9_.-]+", name) is not None


def _server(item: object, where: str) -> Server:
    fields = _mapping(item, where)
    name, listed = fields.get("server_id"), fields.get("device")
    if not isinstance(name, str) or not is_address(name):
        raise ValueError(f"{where}: server_id is {name!r:.60}; it must be the server's address")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{where}: device is {listed!r:.60}; it must list at least one device")
    devices = []
    for index, entry in enumerate(listed):
        place = f"{where}.device[{index}]"
        values = _mapping(entry, place)
        devices.append(
            Device(
                device_id=_number(values, "device_id", place),
                device_ip=_address(values, "device_ip", place),
                rank_id=_number(values, "rank_id", place),
            )
        )
    return Server(name, tuple(devices), _address(fields, "host_nic_ip", where))


def _address(values: Mapping[str, Any], key: str, where: str) -> str:
    value = values.get(key, RESERVED)
    if not isinstance(value, str) or not is_address(value):
        raise ValueError(f"{where}: {key} is {value!r:.60}; it must be an address, or {RESERVED}")
    return value


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r:.60}; it must be an object with keys")
    return value


def _number(values: Mapping[str, Any], key: str, where: str) -> int:
    value = values.get(key)
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise ValueError(f"{where}: {key} is {value!r:.60}; it must be a whole number from 0")
    return int(str(value))


def _check(table: RankTable, where: str) -> None:
    """Raise ValueError for what is there twice, and for ranks that do not count from 0."""
    _refuse_twice((server.server_id for server in table.servers), "server_id", where)
    for server in table.servers:
        place = f"{where}: server {server.server_id}"
        _refuse_twice((device.device_id for device in server.devices), "device_id", place)
    ranks = [device.rank_id for device in table.devices]
    _refuse_twice(ranks, "rank_id", where)
    missing = sorted(set(range(len(ranks))) - set(ranks))
    if missing:
        raise ValueError(
            f"{where}: rank_id {missing[0]} is missing; {len(ranks)} devices have the ranks 0 to "
            f"{len(ranks) - 1}, without gaps"
        )
    if ranks != sorted(ranks):
        raise ValueError(
            f"{where}: rank_id goes {', '.join(map(str, ranks[:8]))}...; it must increase along "
            "the servers and their devices"
        )


def _refuse_twice(values: Iterator[object] | Sequence[object], key: str, where: str) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{where}: {key} {value} is there twice; each must be different")
        seen.add(value)


def merge(tables: Sequence[RankTable]) -> RankTable:
    """Join the tables of several servers; ranks count on from one to the next.

    Raises:
        ValueError: no table, or a server is in several of them.
    """
    if not tables:
        raise ValueError("no rank table to merge; name the file of every server")
    first_rank, servers = 0, list[Server]()
    for server in (server for table in tables for server in table.servers):
        if any(other.server_id == server.server_id for other in servers):
            raise ValueError(
                f"server {server.server_id} is in two of the tables; name each file once, and make "
                "tables of different hosts with different addresses (--server_ip)"
            )
        devices = tuple(
            replace(device, rank_id=first_rank + index)
            for index, device in enumerate(server.devices)
        )
        servers.append(replace(server, devices=devices))
        first_rank += len(devices)
    return RankTable(tuple(servers), tables[0].version)


# --- ranks started by it --------------------------------------------------------------------------


def told() -> tuple[int, int] | None:
    """(rank, ranks) as RANK_ID and RANK_SIZE, or the table, state them; None for a single process.

    Raises:
        ValueError: the variables and the table contradict each other.
    """
    rank, size = env.get_int("RANK_ID"), env.get_int("RANK_SIZE")
    if rank is None:
        return None
    table = _table()
    if table is not None:
        listed = len(table.devices)
        if size is not None and size != listed:
            raise ValueError(
                f"RANK_SIZE is {size}, but {FILE_VARIABLE} ({env.get(FILE_VARIABLE)}) lists "
                f"{listed} ranks; name the table of this job, or start {listed} ranks"
            )
        size = listed
    if size is None or size < 2:
        return None
    if not 0 <= rank < size:
        raise ValueError(f"RANK_ID is {rank}; with RANK_SIZE {size} it must be 0 to {size - 1}")
    return rank, size


def num_servers() -> int:
    """Hosts of the job as far as the rank table tells; 1 without one.

    Raises:
        ValueError: the table is not complete.
    """
    table = _table()
    return 1 if table is None else len(table.servers)


def prepare(with_devices: bool) -> None:
    """Give a process with RANK_ID and RANK_SIZE the variables ``msrun`` gives its workers.

    Args:
        with_devices: ranks use the devices of the table, so that DEVICE_ID must agree with it.

    Raises:
        ValueError: the variables and the table contradict each other.
        RuntimeError: the scheduler's address cannot be used.
    """
    place = told()
    if place is None:
        return
    rank, size = place
    table, host = _table(), LOOPBACK
    device = env.get_int("DEVICE_ID")
    if table is not None:
        listed = table.devices[rank].device_id
        if with_devices and device not in (None, listed):
            raise ValueError(
                f"DEVICE_ID of rank {rank} is {device}, but {FILE_VARIABLE} "
                f"({env.get(FILE_VARIABLE)}) gives it device {listed}; correct one of them"
            )
        device = listed if device is None else device
        if len(table.servers) > 1:  # else loopback serves, whatever the table calls this host
            host = table.servers[0].server_id
    port = env.get_int("MS_SCHED_PORT") or _DEFAULT_PORT
    address = (env.get("MS_SCHED_HOST") or host, port)
    msrun_worker.become(rank, size, address, device, _ranks_beside(rank, size, table))


def local_ranks() -> int | None:
    """Ranks on this host, by the variables that launch scripts set; None if they do not tell."""
    try:
        place = told()
        return None if place is None else _ranks_beside(*place, _table())
    except ValueError:  # reported when the job starts
        return None


def _ranks_beside(rank: int, size: int, table: RankTable | None) -> int:
    if table is None:
        return size
    ranks = ([device.rank_id for device in server.devices] for server in table.servers)
    return next(len(members) for members in ranks if rank in members)


def _table() -> RankTable | None:
    path = env.get(FILE_VARIABLE)
    return read(path) if path else None
