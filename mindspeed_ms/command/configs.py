# SPDX-License-Identifier: Apache-2.0
"""List, show or copy the configurations that come with the package.

mindspeed-ms configs list
mindspeed-ms configs show tiny_gpt
mindspeed-ms configs copy tiny_gpt my_gpt.yaml
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_ms.config.beside import is_there
from mindspeed_ms.files.shipped import CONFIGS, SHIPPED
from mindspeed_ms.files.whole import appears_whole
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

_RELATIVE = re.compile(r"^(\s*[\w.-]+:\s+)(data/\S+)", re.MULTILINE)
"""A key of a configuration whose value is a file that comes with the package."""


def names() -> dict[str, Path]:
    """Name, without ``.yaml``, of every configuration, and its file."""
    return {
        path.relative_to(CONFIGS).with_suffix("").as_posix(): path
        for path in sorted(CONFIGS.rglob("*.yaml"))
    }


def find(name: str) -> Path:
    """The file of a configuration, named with or without its folder and ending.

    Raises:
        ValueError: there is none of this name, or several.
    """
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    every = names()
    if wanted in every:
        return every[wanted]
    found = [full for full in every if full.rpartition("/")[2] == wanted]
    if len(found) == 1:
        return every[found[0]]
    if found:
        raise ValueError(f"{name} stands for {' and '.join(found)}; name one with its folder")
    raise ValueError(f"there is no configuration {name}; there are {', '.join(every)}")


def summary(path: Path) -> str:
    """The sentence at the head of a file; empty if it has none."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    text = " ".join(line for line in lines if not line.startswith("SPDX"))
    return re.split(r"(?<=\w[.;])\s", text)[0].rstrip(".;")


def listing() -> str:
    """A line for every configuration."""
    every = names()
    width = max(map(len, every), default=0)
    return "".join(
        f"{name:<{width}}  {summary(path)}".rstrip() + "\n" for name, path in every.items()
    )


def text_of(path: Path) -> str:
    """What ``show`` prints and ``copy`` writes: files that come with the package by full names."""
    text = path.read_text(encoding="utf-8")
    return _RELATIVE.sub(lambda match: match[1] + _full(match[2]), text)


def _full(name: str) -> str:
    path = SHIPPED / name
    return str(path) if is_there(str(path)) else name


def copy(name: str, target: Path | None, replaces: bool) -> Path:
    """Write a configuration to a file, or into a folder.

    Raises:
        ValueError: there is no such configuration, or the target exists.
    """
    source = find(name)
    target = Path(source.name) if target is None else target
    if target.is_dir():
        target = target / source.name
    if target.exists() and not replaces:
        raise ValueError(f"{target} exists; name another file, or overwrite it with --force")
    with appears_whole(target) as unfinished:
        unfinished.write_text(text_of(source), encoding="utf-8")
        shutil.copymode(source, unfinished)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one of the three; return the status."""
    parser = Parser.of(__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{list,show,copy}")
    kinds.add_parser("list", help="names, and what each is for")
    kinds.add_parser("show", help="print one").add_argument("name")
    copying = kinds.add_parser("copy", help="write one to a file to change")
    copying.add_argument("name")
    copying.add_argument("target", nargs="?", type=Path, help="file or folder; default here")
    copying.add_argument("--force", action="store_true", help="overwrite the file")
    given = parser.parse_args(argv)
    with user_errors():
        if given.kind == "list":
            sys.stdout.write(listing())
        elif given.kind == "show":
            sys.stdout.write(text_of(find(given.name)))
        else:
            sys.stdout.write(f"{copy(given.name, given.target, given.force)}\n")
    return 0
