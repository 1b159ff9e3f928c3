# SPDX-License-Identifier: Apache-2.0
"""Damages the small files that a run reads beside its checkpoints, and says what reading gives.

    python tests/input_mutations.py FOLDER [FIRST_SEED COUNT [KIND ...]]

prints every damage whose answer was neither the right content nor one line.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import input_kinds as kinds  # noqa: E402
from file_mutations import _CHANGES as CHANGES  # noqa: E402

from mindspeed_ms.training.told import TOLD, frames_of, told_line  # noqa: E402

SECONDS = 20
"""After which a reader hangs."""

VALUES = [
    *(None, True, False, 0, -1, 7, 10**9, 10**30, 1.5, 1e300, float("nan"), float("inf")),
    *("", "x", "7", "\ud800", "\0", [], [None], [1], ["x"], [[1]], {}, {"a": 1}, {"a": {"b": []}}),
]


@dataclass(frozen=True)
class Damage:
    """What was done to a file."""

    what: str
    path: Path
    """In the folder."""
    is_seen: bool
    """Whether a reader has to notice: the file is no file any more, cut, or another's."""


def _missing(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "missing"


def _truncated(path: Path, rng: random.Random) -> str:
    data = path.read_bytes()
    place = rng.randrange(max(1, len(data)))
    path.write_bytes(data[:place])
    return f"truncated at {place}"


def _special(path: Path, rng: random.Random) -> str:
    what = rng.choice(["pipe", "device", "folder", "circle", "dangling", "empty"])
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "empty":
        path.write_bytes(b"")
    else:
        target = {"device": "/dev/zero", "circle": path.name, "dangling": "nowhere"}[what]
        path.symlink_to(target)
    return what


def _foreign(path: Path, rng: random.Random) -> str:
    what, data = rng.choice(
        [
            ("a zip", b"PK\x03\x04" + bytes(60)),
            ("brackets", b"[" * 100_000),
            ("an array", b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'shape': (99999999999,), }"),
            ("noise", rng.randbytes(rng.randrange(1, 3000))),
            ("null", b"null"),
            ("no utf-8", b"\xff\xfe\x00"),
            ("a mark", b"\xef\xbb\xbf" + path.read_bytes()),
            ("a pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
        ]
    )
    path.write_bytes(data)
    return what


def _huge(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    size, place = rng.choice([4, 8]), rng.randrange(max(1, min(len(data), 400)))
    data[place : place + size] = rng.choice([b"\xff", b"\x7f"]) * size
    path.write_bytes(data)
    return f"huge number at {place}"


def _json(path: Path, rng: random.Random) -> str | None:
    """Another value, a missing key, or an element twice in a text of JSON."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        is_lines = path.suffix == ".jsonl"
        number = rng.randrange(len(lines)) if is_lines else 0
        content = json.loads(lines[number] if is_lines else "\n".join(lines))
    except ValueError:
        return None
    content, what = altered(content, rng)
    text = json.dumps(content)
    if is_lines:
        text = "\n".join([*lines[:number], text, *lines[number + 1 :], ""])
    path.write_text(text, encoding="utf-8")
    return what


def altered(content: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy of a JSON value of which one part is another, or gone."""
    content = copy.deepcopy(content)
    ways = list(_ways(content))
    if not ways or rng.random() < 0.05:
        value = rng.choice(VALUES)
        return value, f"all is {value!r}"
    way = rng.choice(ways)
    node = content
    for key in way[:-1]:
        node = node[key]
    if rng.random() < 0.25:
        del node[way[-1]]
        return content, f"without {way}"
    node[way[-1]] = value = rng.choice(VALUES)
    return content, f"{way} is {value!r}"


def _ways(node: Any, at: tuple[Any, ...] = ()) -> Any:
    if not isinstance(node, dict | list):
        return
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for number, (key, value) in enumerate(pairs):
        if number < 30:
            yield (*at, key)
            yield from _ways(value, (*at, key))


SEEN = (_missing, _truncated, _special, _foreign)


def damage(folder: Path, seed: int) -> Damage:
    """Damage one file of a folder in place."""
    rng = random.Random(seed)
    path = rng.choice(sorted(one for one in folder.rglob("*") if one.is_file()))
    name = path.relative_to(folder)
    if rng.random() < 0.5:
        what = _json(path, rng)
        if what is not None:
            return Damage(what, name, is_seen=False)
    way: Callable[..., str] = rng.choice([*SEEN, *SEEN, _huge, None, None])
    if way is not None:
        return Damage(way(path, rng), name, is_seen=way in SEEN)
    data, kind = bytearray(path.read_bytes()), rng.choice(list(CHANGES))
    place = CHANGES[kind](data, rng, rng.randrange(max(1, len(data))))
    path.write_bytes(data)
    return Damage(f"{kind} at {place}", name, is_seen=False)


class _Told(logging.Handler):
    """Whether a warning was given."""

    is_any = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take one."""
        self.is_any = self.is_any or record.levelno >= logging.WARNING


def fault_of(read: Callable[[Path], object], folder: Path, sound: object) -> tuple[str, str]:
    """What came of reading, and what was said.

    ``refused`` in one line, ``named`` by a warning, ``equal``, ``other``; ``fault`` if it hangs, or
    shows a traceback.
    """

    def ring(*unused: object) -> None:
        raise TimeoutError("hangs")

    told, errors = _Told(), io.StringIO()
    logging.getLogger("mindspeed_ms").addHandler(told)
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(errors):
            found = read(folder)
    except TimeoutError as error:
        return "fault", str(error)
    except BaseException as error:  # noqa: BLE001  (anything is a finding)
        signal.alarm(0)
        line = None
        if isinstance(error, TOLD):
            line = told_line(error, list(frames_of(error.__traceback__))[1:], is_reading=True)
        if line is None or "\n" in line:
            frames = [frame.f_code for frame, _ in frames_of(error.__traceback__)]
            way = " ".join(f"{Path(code.co_filename).name}:{code.co_name}" for code in frames[-4:])
            return "fault", f"{type(error).__name__}: {error!s:.300} ({way})"
        return "refused", line
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        logging.getLogger("mindspeed_ms").removeHandler(told)
    is_named = told.is_any or errors.getvalue()
    result = "equal" if found == sound else "named" if is_named else "other"
    return result, f"{found!r:.300}"


_SOUND: dict[Path, object] = {}


def attack(kind: kinds.Kind, made: Path, work: Path, seed: int) -> tuple[Damage, str, str]:
    """Damage a copy of what a kind has made; the damage, what came of it, what was said."""
    if made not in _SOUND:  # of a copy, since some are changed by who reads them
        _SOUND[made] = kind.read(Path(shutil.copytree(made, made.with_name(f"{made.name}.sound"))))
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(made, work)
    done = damage(work, seed)
    result, said = fault_of(kind.read, work, _SOUND[made])
    name = done.path.name
    is_excused = (name in kind.optional and done.what == "missing") or name in kind.plain
    if result == "other" and done.is_seen and not is_excused:
        result = "silent"
    return done, result, said


def main() -> None:
    """Try some seeds of some kinds."""
    root = Path(sys.argv[1])
    first, count = (int(word) for word in (sys.argv[2:4] or ["0", "100"]))
    for name in sys.argv[4:] or list(kinds.KINDS):
        kind, made = kinds.KINDS[name], root / name
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(root / f"{name}.sound", ignore_errors=True)
        made.mkdir(parents=True)
        kind.make(made)
        tally: dict[str, int] = {}
        for seed in range(first, first + count):
            done, result, said = attack(kind, made, root / "work", seed)
            tally[result] = tally.get(result, 0) + 1
            if result in ("fault", "silent") or os.environ.get("ALL"):
                sys.stdout.write(f"{name} {seed} {done.path}: {done.what}: {result}: {said}\n")
                sys.stdout.flush()
        sys.stdout.write(f"{name}: {tally}\n")


if __name__ == "__main__":
    main()
