# SPDX-License-Identifier: Apache-2.0
"""The server side of MPICH's simple process management interface (PMI-1), without its sockets.

An MPI process that finds ``PMI_FD``, ``PMI_RANK`` and ``PMI_SIZE`` in its environment speaks on
that open connection: it publishes its address under a key, meets the others in barriers and reads
their keys. This module answers one request line at a time; ``job_server`` owns the connections,
which have proved to be of the job before they are given to MPI.

Source:
    MPICH, ``src/pmi/src/pmi_wire.c`` and ``pmi_msg.c`` (protocol version 1.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from mindspeed_ms.backend.job_messages import ProtocolError

_MAX_NAME = 256
_MAX_KEY = 64
_MAX_VALUE = 1024
_MAX_KEYS_PER_RANK = 256
_MAPPING = "PMI_process_mapping"


def process_mapping(hosts: Sequence[object]) -> str:
    """The value of ``PMI_process_mapping``: which ranks share a host, and so its memory.

    Args:
        hosts: one hashable per rank; ranks with equal values are on one host.

    Returns:
        MPICH's run-length form ``(vector,(first host, hosts, ranks per host),...)``.

    >>> process_mapping(["a", "a", "b", "b"])
    '(vector,(0,1,2),(1,1,2))'
    """
    number = {host: index for index, host in enumerate(dict.fromkeys(hosts))}
    runs = [(number[host], len(list(run))) for host, run in groupby(hosts)]
    return "(vector," + ",".join(f"({host},1,{count})" for host, count in runs) + ")"


def parse_line(line: str) -> dict[str, str]:
    """Fields of one request, e.g. ``cmd=put kvsname=a key=b value=c``.

    Raises:
        ProtocolError: the line does not begin with a command.
    """
    fields = dict(word.partition("=")[::2] for word in line.split())
    if "cmd" not in fields:
        raise ProtocolError(f"expected a PMI-1 request 'cmd=...', got {line[:80]!r}")
    return fields


class PmiSpace:
    """The shared state of one job: its key-value space and its barrier.

    ``name`` must be unique on the host: MPICH names its shared-memory segment after it, and a
    leftover segment of the same name would stall the start of the next job.
    """

    def __init__(self, size: int, name: str, mapping: str) -> None:
        self.size = size
        self.name = name
        self._values = {_MAPPING: mapping}
        self._in_barrier: set[int] = set()

    def handle(self, rank: int, line: str) -> list[tuple[int, str]]:
        """Answer one request of ``rank``.

        Returns:
            (rank, reply) pairs, newline included; none while a barrier is incomplete.

        Raises:
            ProtocolError: an unknown command or a request that lacks a field.
        """
        request = parse_line(line)
        command = request["cmd"]
        if command == "barrier_in":
            return self._enter_barrier(rank)
        answers = {
            "init": self._init,
            "get_maxes": self._get_maxes,
            "get_appnum": self._get_appnum,
            "get_universe_size": self._get_universe_size,
            "get_my_kvsname": self._get_my_kvsname,
            "put": self._put,
            "get": self._get,
            "finalize": self._finalize,
        }
        if command not in answers:
            raise ProtocolError(f"rank {rank} sent the unknown PMI command {command!r}")
        try:
            return [(rank, answers[command](rank, request))]
        except KeyError as missing:
            raise ProtocolError(f"rank {rank} sent PMI {command} without {missing}") from None

    def _enter_barrier(self, rank: int) -> list[tuple[int, str]]:
        self._in_barrier.add(rank)
        if len(self._in_barrier) < self.size:
            return []
        released, self._in_barrier = sorted(self._in_barrier), set()
        return [(member, "cmd=barrier_out rc=0\n") for member in released]

    def _init(self, rank: int, request: dict[str, str]) -> str:
        supported = request["pmi_version"] == "1"
        return f"cmd=response_to_init pmi_version=1 pmi_subversion=1 rc={0 if supported else -1}\n"

    def _get_maxes(self, rank: int, request: dict[str, str]) -> str:
        limits = f"kvsname_max={_MAX_NAME} keylen_max={_MAX_KEY} vallen_max={_MAX_VALUE}"
        return f"cmd=maxes rc=0 {limits}\n"

    def _get_appnum(self, rank: int, request: dict[str, str]) -> str:
        return "cmd=appnum rc=0 appnum=0\n"

    def _get_universe_size(self, rank: int, request: dict[str, str]) -> str:
        return f"cmd=universe_size rc=0 size={self.size}\n"

    def _get_my_kvsname(self, rank: int, request: dict[str, str]) -> str:
        return f"cmd=my_kvsname rc=0 kvsname={self.name}\n"

    def _put(self, rank: int, request: dict[str, str]) -> str:
        key, value = request["key"], request["value"]
        if key == _MAPPING or len(key) > _MAX_KEY or len(value) > _MAX_VALUE:
            raise ProtocolError(f"rank {rank} put a wrong key or value under {key[:_MAX_KEY]!r}")
        if len(self._values) > _MAX_KEYS_PER_RANK * self.size:
            raise ProtocolError(f"rank {rank} put too many keys")
        self._values[key] = value
        return "cmd=put_result rc=0 msg=success\n"

    def _get(self, rank: int, request: dict[str, str]) -> str:
        value = self._values.get(request["key"])
        if value is None:
            return "cmd=get_result rc=-1 msg=key_not_found value=unknown\n"
        return f"cmd=get_result rc=0 msg=success value={value}\n"

    def _finalize(self, rank: int, request: dict[str, str]) -> str:
        return "cmd=finalize_ack rc=0\n"
