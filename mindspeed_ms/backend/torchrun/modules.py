# SPDX-License-Identifier: Apache-2.0
"""Whether there is something to run, before ranks are started."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from mindspeed_ms.backend.torchrun.options import LaunchError

_NO_SCRIPTS = (".yaml", ".yml", ".json", ".jsonl", ".txt", ".log", ".sh", ".bin", ".npy")
"""Endings of files that Python cannot run; words behind a flag without a value lead there."""


def require_module(name: str) -> None:
    """Look for what ``python -m`` would run; nothing is imported.

    Raises:
        LaunchError: there is no such module, or it is a package that cannot be run.
    """
    top, *inner = name.split(".")
    if not all(part.isidentifier() for part in (top, *inner)):
        raise LaunchError(f"{name!r:.80} is not the name of a module; write package.module")
    with _beside_current_folder():
        spec = _top(top)
    at = top
    for part in inner:
        at = f"{at}.{part}"
        spec = spec and _inside(spec, at)
    if spec is None:
        raise LaunchError(f"there is no module {name}; check the name, and PYTHONPATH")
    if spec.submodule_search_locations is not None and _inside(spec, f"{name}.__main__") is None:
        raise LaunchError(f"{name} is a package without a __main__; name a module of it")


def refuse_other_files(path: str) -> None:
    """Look at the ending of what is to be run.

    Raises:
        LaunchError: files that end so are no scripts.
    """
    if Path(path).suffix in _NO_SCRIPTS:
        raise LaunchError(f"{path} is no Python script; name the script before its words")


def _top(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # of a module without a description, as __main__
        return None


def _inside(package: ModuleSpec, name: str) -> ModuleSpec | None:
    places = package.submodule_search_locations
    return None if places is None else PathFinder.find_spec(name, list(places))


@contextlib.contextmanager
def _beside_current_folder() -> Iterator[None]:
    """The ranks look into the folder they are started in first."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        del sys.path[0]
