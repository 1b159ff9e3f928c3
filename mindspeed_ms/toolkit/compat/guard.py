# SPDX-License-Identifier: Apache-2.0
"""What stands behind ``mindformers`` and ``transformer`` when they are ours.

A real installation is never shadowed silently: if there is one, importing ours is an error, unless
``MINDSPEED_MS_COMPAT=override`` says that ours is meant.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import mindspeed_ms
from mindspeed_ms.backend import env
from mindspeed_ms.config.section import suggestion
from mindspeed_ms.toolkit.compat import aliases

PATH = Path(__file__).with_name("path")
"""The folder that goes on the path."""
PROVIDED = ("mindformers", "transformer")
OVERRIDE_VARIABLE = "MINDSPEED_MS_COMPAT"


@dataclass(frozen=True, slots=True)
class Provided:
    """What a package of ``path/`` is made of."""

    version: str
    get: Callable[[str], object]
    """Its ``__getattr__``."""
    names: Callable[[], list[str]]
    """Its ``__dir__``."""
    folders: list[str]
    """Folders of that name with modules of the user's own."""


def provide(name: str) -> Provided:
    """Make a package ours, if nothing else is meant.

    Args:
        name: the package's ``__name__``.

    Raises:
        ImportError: it is imported by another way than the path, or a real one is installed.
        ValueError: MINDSPEED_MS_COMPAT says something unknown.
    """
    if name not in PROVIDED:
        raise ImportError(f"{name} is no module; put {PATH} on PYTHONPATH and import its packages")
    real = None if _is_override() else installed(name)
    if real is not None:
        raise ImportError(
            f"{name} is installed at {real}, and {PATH} on PYTHONPATH stands before it; take one "
            f"of the two away, or set {OVERRIDE_VARIABLE}=override to use mindspeed_ms"
        )
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
    if env.stated_rank() == 0:
        sys.stderr.write(f"{name}: provided by mindspeed_ms {mindspeed_ms.__version__} ({PATH})\n")
    version = f"{mindspeed_ms.__version__}+mindspeed_ms"
    return Provided(version, getter(name), lambda: sorted(aliases.names_of(name)), _own(name))


def _is_override() -> bool:
    value = env.get(OVERRIDE_VARIABLE) or ""
    if value not in ("", "override"):
        raise ValueError(f"{OVERRIDE_VARIABLE} is {value!r}; it may be override, or unset")
    return value == "override"


def installed(name: str) -> str | None:
    """Where another package of that name is; None if ours is the only one.

    A folder without ``__init__.py`` is no such package, only a place for a user's modules.
    """
    others = [folder for folder in sys.path if Path(folder).resolve() != PATH.resolve()]
    for finder in sys.meta_path:
        if finder is importlib.machinery.PathFinder:
            spec = importlib.machinery.PathFinder.find_spec(name, others)
        elif isinstance(finder, type) or isinstance(finder, _Finder):
            continue  # of Python itself, or ours
        else:  # an installation in place brings a finder of its own
            spec = finder.find_spec(name, None)
        if spec is not None and spec.origin is not None:
            return str(spec.origin)
    return None


def _own(name: str) -> list[str]:
    folders = [Path(folder or ".") / name for folder in sys.path]
    return [str(one) for one in folders if one.is_dir() and not (one / "__init__.py").exists()]


def getter(module: str) -> Callable[[str], object]:
    """The ``__getattr__`` of a module. ``from x import y`` shows the text of its ImportError."""

    def get(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        provided = aliases.names_of(module)
        if name in provided:
            _cover_scripts()
            return getattr(mindspeed_ms, name)
        try:
            return importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{module}.{name}":
                raise
        raise ImportError(_message(f"{module}.{name}", name, provided), name=name)

    return get


def _message(asked: str, name: str, provided: Sequence[str]) -> str:
    listed = ", ".join(provided) or "nothing yet"
    if name in aliases.INSTEAD:
        return f"{asked} is not provided by mindspeed_ms; {aliases.INSTEAD[name]}"
    return (
        f"{asked} is not provided by mindspeed_ms{suggestion(name, provided)}; available: {listed}"
    )


def _cover_scripts() -> None:
    """Scripts for NPUs set the context themselves, and do so after this import."""
    importlib.import_module("mindspeed_ms.backend.script_context").cover_scripts()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the alias table; what is a file in ``path/`` was found before."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module in the table.

        Raises:
            ModuleNotFoundError: the package is ours, and has no such module.
        """
        del path, target
        package = fullname.partition(".")[0]
        if package not in PROVIDED or package == fullname:
            return None
        if fullname in aliases.COMMANDS:
            ours = importlib.util.find_spec(aliases.COMMANDS[fullname])
            assert ours is not None and ours.origin is not None, "the table names our modules"
            return importlib.util.spec_from_file_location(fullname, ours.origin)
        if fullname not in aliases.MODULES:
            known = [name for name in aliases.MODULES if name.startswith(f"{package}.")]
            raise ModuleNotFoundError(_message(fullname, fullname, known), name=fullname)
        return importlib.machinery.ModuleSpec(fullname, _Loader(), is_package=True)


class _Loader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name, f"Names of mindspeed_ms, under {spec.name}.")
        module.__getattr__ = getter(spec.name)  # type: ignore[method-assign]
        module.__all__ = sorted(aliases.names_of(spec.name))  # type: ignore[attr-defined]
        module.__dir__ = lambda: sorted(aliases.names_of(spec.name))  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Names are looked up when they are asked for."""
        _cover_scripts()
