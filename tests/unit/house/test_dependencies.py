# SPDX-License-Identifier: Apache-2.0
"""What is imported is declared in pyproject.toml, and what is declared is imported."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = {
    "protobuf": ("google",),
    "aiobotocore": ("boto3",),  # by its extra, in a version that fits
    "pyyaml": ("yaml",),
    "pillow": ("PIL",),
    "setuptools-scm": ("setuptools_scm",),
    "megatron-core": ("megatron",),
    "tensorboardx": ("tensorboardX",),
}
"""Distribution -> what it is imported as, where that is not its name."""
COMMANDS = {
    "crc32c",
    "mpich",
    "mkdocs-material",
    "mkdocstrings",
    "ruff",
    "mypy",
    "pre-commit",
    "protobuf",
    "s3fs",
}
"""Declared for their programs, or for libraries that use them; nothing imports them."""
OPTIONAL = {
    "mindspore_gs": "MindSpore's own, part of no registry",
    "torch_npu": "a user's script may have it",
}
"""Imported inside a try where it may be missing, and offered by no extra."""


def _name(requirement):
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def _modules(requirements):
    for requirement in requirements:
        name = _name(requirement)
        if name != "mindspeed-ms":
            yield from MODULES.get(name, (name.replace("-", "_"),))


def _imports(paths):
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.Call) and _is_import_by_name(node):
                names = [node.args[0].value]
            for name in names:
                yield name.partition(".")[0], path.relative_to(ROOT)


def _is_import_by_name(call):
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    is_text = call.args and isinstance(call.args[0], ast.Constant)
    names = ("import_module", "importorskip", "find_spec", "library")
    return name in names and is_text and isinstance(call.args[0].value, str)


def _own():
    local = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    local |= {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    local |= {path.stem for path in (ROOT / "tools").rglob("*.py")}
    local |= {path.stem for path in (ROOT / "benchmarks").rglob("*.py")}
    return {"mindspeed_ms", "tools", "benchmarks", "tests", "convert_ckpt", *local}


@functools.cache
def _foreign(*folders):
    if len(folders) > 1:
        return set().union(*map(_foreign, folders))
    known = sys.stdlib_module_names | _own()
    paths = sorted((ROOT / folders[0]).rglob("*.py"))
    return {(name, str(path)) for name, path in _imports(paths) if name not in known}


def _declared():
    everything = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    return set(_modules(everything))


@pytest.mark.parametrize("folder", ["mindspeed_ms", "tools", "benchmarks", "tests"])
def test_what_is_imported_is_declared(folder):
    missing = {
        (name, path)
        for name, path in _foreign(folder)
        if name not in _declared() and name not in OPTIONAL
    }
    assert not missing, f"declare them in pyproject.toml, as dependency or extra: {missing}"


def test_what_is_required_is_imported_by_the_package():
    used = {name for name, _ in _foreign("mindspeed_ms")}
    for requirement in PROJECT["dependencies"]:
        assert set(_modules([requirement])) & used, f"{requirement} is imported nowhere"


def test_what_extras_name_is_used():
    used = {name for name, _ in _foreign("mindspeed_ms", "tools", "benchmarks", "tests")}
    used |= {name for name, _ in _imports([ROOT / "setup.py"])}
    for extra, requirements in EXTRAS.items():
        for requirement in requirements:
            is_used = _name(requirement) in COMMANDS or set(_modules([requirement])) & used
            assert is_used or _name(requirement) == "mindspeed-ms", f"{extra}: {requirement}"
