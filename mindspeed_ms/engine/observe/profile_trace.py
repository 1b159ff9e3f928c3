# SPDX-License-Identifier: Apache-2.0
"""What ranks recorded, merged into one trace for Perfetto or chrome://tracing.

Every rank is a process of the trace, with lanes for iterations, schedule, operators, communication,
cells and data. What a rank spends in a communication is told apart: it waits until the last rank of
the group has come, and from then on data moves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from mindspeed_ms.backend.comm import CommCall
from mindspeed_ms.files.content import taken_apart
from mindspeed_ms.files.regular_file import read_bytes
from mindspeed_ms.files.whole import write_text

LANES = ("iterations", "schedule", "operators", "communication", "cells", "data")
TRACE_NAME, TABLE_NAME, RANK_NAME = "trace.json", "communication.json", "rank_{:05d}.json"

Key: TypeAlias = tuple[Any, ...]
"""What several ranks' calls have in common: the n-th of a group, or of a pair of ranks."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time on a rank, in seconds of its clock."""

    lane: str
    name: str
    start: float
    end: float
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RankTrace:
    """What one rank recorded."""

    rank: int
    host: str
    stage: int
    spans: list[Span] = field(default_factory=list)
    calls: list[CommCall] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    """(time, bytes in use)."""
    clock: float = 0.0
    """A moment that is the same on all ranks, on this rank's clock."""
    layout: dict[str, Any] = field(default_factory=dict)
    """Place of the rank on the axes of the layout, if that was asked for."""

    def plain(self) -> dict[str, Any]:
        """As data for a file."""
        return asdict(self)

    @classmethod
    def of_plain(cls, data: Mapping[str, Any]) -> RankTrace:
        """What ``plain`` made."""
        return cls(
            **{
                **data,
                "spans": [Span(**one) for one in data["spans"]],
                "calls": [CommCall(**{**one, **_as_tuples(one)}) for one in data["calls"]],
            }
        )


def _as_tuples(call: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(call[name]) for name in ("ranks", "sends", "receives")}


def shifts(traces: Sequence[RankTrace]) -> dict[int, float]:
    """Rank -> what is added to its times, so that all are those of the first rank's clock.

    Processes of one host share a clock; of other hosts the common moment tells the difference.
    """
    first = traces[0]
    return {one.rank: 0.0 if one.host == first.host else first.clock - one.clock for one in traces}


def _keys(rank: int, calls: Sequence[CommCall]) -> Iterator[tuple[CommCall, list[Key], list[Key]]]:
    """Calls with the keys at which they arrive, and those whose arrivals they need."""
    counts: dict[Key, int] = {}

    def numbered(key: Key) -> Key:
        counts[key] = counts.get(key, 0) + 1
        return (*key, counts[key])

    for call in sorted(calls, key=lambda one: one.start):
        if call.sends or call.receives:
            sent = [numbered((call.group, rank, peer)) for peer in call.sends]
            yield call, sent, [numbered((call.group, peer, rank)) for peer in call.receives]
        else:
            key = numbered((call.group,))
            yield call, [key], [key]


def waiting_times(
    traces: Sequence[RankTrace],
) -> dict[int, list[tuple[CommCall, float]]]:
    """Rank -> its calls, each with the seconds it waited for the last recorded rank to come."""
    offset = shifts(traces)
    arrivals: dict[Key, float] = {}
    for one in traces:
        for call, arrives, _ in _keys(one.rank, one.calls):
            for key in arrives:
                moment = call.start + offset[one.rank]
                arrivals[key] = max(arrivals.get(key, moment), moment)
    result = {}
    for one in traces:
        rows = []
        for call, _, needs in _keys(one.rank, one.calls):
            moments = [arrivals[key] for key in needs if key in arrivals]
            last = max(moments, default=call.blocked) - offset[one.rank]
            rows.append((call, min(max(0.0, last - call.blocked), call.end - call.blocked)))
        result[one.rank] = rows
    return result


def merged(traces: Sequence[RankTrace]) -> dict[str, Any]:
    """The trace of all ranks on one time axis."""
    offset, waits = shifts(traces), waiting_times(traces)
    zero = min((span.start + offset[one.rank] for one in traces for span in one.spans), default=0.0)
    events: list[dict[str, Any]] = []
    for one in traces:
        shift = offset[one.rank] - zero
        title = f"rank {one.rank}, stage {one.stage}"
        events.append(_named("process_name", one.rank, 0, title))
        events += [_named("thread_name", one.rank, at, lane) for at, lane in enumerate(LANES)]
        for span in one.spans:
            events.append(_event(one.rank, span, shift))
        for call, waited in waits[one.rank]:
            events += _comm_events(one.rank, call, waited, shift)
        events += [
            {
                **{"ph": "C", "pid": one.rank, "tid": 0, "name": "memory (MB)"},
                **{"ts": (moment + shift) * 1e6, "args": {"in use": size / 2**20}},
            }
            for moment, size in one.memory
        ]
    layout = {str(one.rank): one.layout for one in traces if one.layout}
    more = {"hosts": {str(one.rank): one.host for one in traces}, "layout": layout}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": more}


def _named(kind: str, rank: int, lane: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": lane, "args": {"name": name}}


def _event(rank: int, span: Span, shift: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": rank,
        "tid": LANES.index(span.lane),
        "cat": span.lane,
        "name": span.name,
        "ts": (span.start + shift) * 1e6,
        "dur": (span.end - span.start) * 1e6,
        "args": span.facts,
    }


def _comm_events(
    rank: int, call: CommCall, waited: float, shift: float
) -> Iterator[dict[str, Any]]:
    """The whole call, and inside it the waiting and the moving."""
    facts = {
        "group": call.group,
        "ranks": list(call.ranks),
        "bytes": call.num_bytes,
        "waiting (ms)": 1e3 * waited,
        "moving (ms)": 1e3 * (call.end - call.blocked - waited),
    }
    if call.blocked > call.start:
        facts["in flight (ms)"] = 1e3 * ((call.done or call.end) - call.start)
        facts["hidden (ms)"] = 1e3 * call.hidden
    if call.sends or call.receives:
        facts |= {"to": list(call.sends), "from": list(call.receives)}
    if call.begun:
        start = Span("communication", f"{call.name} starts", call.start, call.begun)
        yield _event(rank, start, shift)
    middle = call.blocked + waited
    yield _event(rank, Span("communication", call.name, call.blocked, call.end, facts), shift)
    if waited > 0.0:
        yield _event(rank, Span("communication", "waiting", call.blocked, middle), shift)
    if call.end > middle:
        yield _event(rank, Span("communication", "moving", middle, call.end), shift)


def communication_table(traces: Sequence[RankTrace]) -> list[dict[str, Any]]:
    """Sums over the calls of each rank, operation and group, blocking and asynchronous apart."""
    rows: dict[Key, dict[str, Any]] = {}
    for rank, calls in waiting_times(traces).items():
        for call, waited in calls:
            row = rows.setdefault(
                (rank, call.name, call.group, call.begun > 0.0),
                {
                    **{"rank": rank, "operation": call.name, "group": call.group},
                    **{"ranks": list(call.ranks), "asynchronous": call.begun > 0.0},
                    **{"calls": 0, "bytes": 0},
                    **{"waiting_seconds": 0.0, "moving_seconds": 0.0},
                    **{"starting_seconds": 0.0, "hidden_seconds": 0.0},
                },
            )
            row["calls"] += 1
            row["bytes"] += call.num_bytes
            row["waiting_seconds"] += waited
            row["moving_seconds"] += call.end - call.blocked - waited
            row["starting_seconds"] += max(0.0, call.begun - call.start)
            row["hidden_seconds"] += call.hidden
    return list(rows.values())


def summary_lines(traces: Sequence[RankTrace]) -> list[str]:
    """Where the time of the recorded iterations went, for every rank, in milliseconds."""
    lines = [" rank | iterations | total | operators | communication: waiting | moving | rest"]
    table = communication_table(traces)
    for one in traces:
        steps = [span for span in one.spans if span.lane == "iterations"]
        total = sum(span.end - span.start for span in steps)
        operators = sum(s.end - s.start for s in one.spans if s.lane == "operators")
        mine = [row for row in table if row["rank"] == one.rank]
        waiting = sum(row["waiting_seconds"] for row in mine)
        moving = sum(row["moving_seconds"] for row in mine)
        rest = total - operators - waiting - moving
        lines.append(
            f" {one.rank:4d} | {len(steps):10d} | {1e3 * total:.1f} | {1e3 * operators:.1f} | "
            f"{1e3 * waiting:.1f} | {1e3 * moving:.1f} | {1e3 * rest:.1f}"
        )
    return lines


def write_rank(folder: Path, trace: RankTrace) -> None:
    """Write what one rank recorded, to be merged later."""
    path = folder / RANK_NAME.format(trace.rank)
    write_text(path, json.dumps(trace.plain()))


def read_ranks(folder: Path) -> list[RankTrace]:
    """What ``write_rank`` wrote, in the order of ranks.

    Raises:
        ValueError: there is none.
    """
    files = sorted(folder.glob("rank_*.json"))
    if not files:
        raise ValueError(f"{folder} holds no rank_*.json; name the folder of --profile-save-path")
    return [_read_rank(path) for path in files]


def _read_rank(path: Path) -> RankTrace:
    with taken_apart(path, "what a rank recorded with --profile-offline-analyse"):
        return RankTrace.of_plain(json.loads(read_bytes(path)))


def write_merged(folder: Path, traces: Sequence[RankTrace], *, with_table: bool) -> Path:
    """Write the trace of all ranks, and the table of their communication.

    Returns:
        The trace's file.
    """
    path = folder / TRACE_NAME
    write_text(path, json.dumps(merged(traces)))
    if with_table:
        write_text(folder / TABLE_NAME, json.dumps(communication_table(traces), indent=1))
    return path
