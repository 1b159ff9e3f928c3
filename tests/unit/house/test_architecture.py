# SPDX-License-Identifier: Apache-2.0
"""The house rules: layers, sizes, and what only the backend may touch."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mindspeed_ms

ROOT = Path(mindspeed_ms.__file__).parents[1]
PACKAGE = ROOT / "mindspeed_ms"
PURE = ("files", "plan", "config", "models", "planning", "formats")
"""Rooms without MindSpore, which sit below what moves tensors."""
BELOW = {
    "files": (),
    "plan": (),
    "config": ("files", "plan"),
    "models": ("plan", "config"),
    "planning": ("plan", "config", "models"),
    "formats": ("files", "plan", "config", "models"),
    "backend": (),
    "ops": ("files", "backend"),
    "data": ("files", "plan", "config", "backend"),
    "core": ("files", "plan", "config", "models", "formats", "backend", "ops"),
    "legacy": ("files", "plan", "config", "models", "formats", "backend", "ops", "core"),
    "engine": (*PURE, "backend", "ops", "data", "core", "legacy"),
    "inference": (*PURE, "backend", "ops", "data", "core", "legacy", "engine"),
    "training": (*PURE, "backend", "ops", "data", "core", "legacy", "engine", "inference"),
}
"""Room -> rooms it may import."""
BELOW["toolkit"] = (*BELOW["training"], "training")
BELOW["predecessor"] = BELOW["training"]
BELOW["command"] = (*BELOW["toolkit"], "toolkit")
RENAMED = (
    "core/config",
    "core/context_parallel/flash_sp.py",
    "core/context_parallel/ring_attention.py",
    "core/context_parallel/ulysses_context_parallel.py",
    "core/context_parallel/utils.py",
    "core/datasets",
    "core/optimizer/distrib_optimizer.py",
    "core/optimizer/zero",
    "legacy/data",
    "legacy/model/activation.py",
    "training/data.py",
    "training/grad_handler.py",
    "training/global_vars.py",
    "training/tokenizer.py",
    "training/train_loop.py",
    "training/utils.py",
)
"""Megatron's and the guide's import paths of other rooms; they import and name, nothing else."""
LARGEST_SHARE = 0.25
"""Of the package's lines, in one room."""
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 80
LONG_FUNCTIONS = {
    # Megatron's public signatures: one line per argument and its documentation.
    "mindspeed_ms/core/tensor_parallel/layers.py": {"ColumnParallelLinear.__init__"},
    "mindspeed_ms/core/parallel_state.py": {"initialize_model_parallel"},
    "mindspeed_ms/legacy/model/language_model.py": {"TransformerLanguageModel.__init__"},
}
COMMUNICATION = {"mpi4py", "mindspore.communication", "mindspore.mint.distributed"}


def _files():
    own = [path for path in PACKAGE.rglob("*.py")]
    own += list((ROOT / "tools").rglob("*.py")) + list((ROOT / "benchmarks").rglob("*.py"))
    return sorted([*own, ROOT / "pretrain_gpt.py", ROOT / "run_mindformer.py"])


FILES = _files()
IDS = [str(path.relative_to(ROOT)) for path in FILES]
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))
TEST_IDS = [str(path.relative_to(ROOT)) for path in TEST_FILES]


def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _room(path):
    """Room of a file; None for entry points, renamed paths and the package itself."""
    if PACKAGE not in path.parents:
        return None
    inside = path.relative_to(PACKAGE)
    if any(str(inside).startswith(name) for name in RENAMED):
        return None
    return inside.parts[0] if len(inside.parts) > 1 else None


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module or ""
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"


def _own_rooms_imported(path):
    for node, name in _imports(_tree(path)):
        parts = name.split(".")
        if parts[0] == "mindspeed_ms" and len(parts) > 1:
            yield node, name, parts[1]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_one_way(path):
    room = _room(path)
    for node, name, other in _own_rooms_imported(path):
        target = PACKAGE.joinpath(*name.split(".")[1:])
        is_renamed = any(
            str(target.relative_to(PACKAGE)).startswith(old.removesuffix(".py")) for old in RENAMED
        ) and (target.with_suffix(".py").is_file() or target.is_dir())
        if path.parent != PACKAGE and PACKAGE in path.parents and path.parts[-1] != "__init__.py":
            assert not is_renamed, f"{path}:{node.lineno} imports {name}, an old path"
        if room is None:
            continue
        assert room in BELOW, f"{path} is in no known room"
        assert other == room or other in BELOW[room] or other not in BELOW, (
            f"{path}:{node.lineno} imports {name}; {room} may import {BELOW[room]}"
        )


def test_no_file_is_in_an_import_circle():
    modules = {_module(path): path for path in FILES if PACKAGE in path.parents}
    graph = {module: _modules_imported(path, modules) for module, path in modules.items()}
    done, stack = set(), []

    def visit(module):
        if module in stack:
            pytest.fail(" -> ".join([*stack[stack.index(module) :], module]))
        if module not in done:
            stack.append(module)
            for other in sorted(graph[module] - {module}):
                visit(other)
            stack.pop()
            done.add(module)

    for module in sorted(graph):
        visit(module)


def _module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _modules_imported(path, modules):
    """Modules of the package that a file names; a package counts only for names of its own."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
    return found & modules.keys()


def test_pure_rooms_run_without_mindspore():
    script = f"""
import pkgutil, sys, importlib
sys.modules["mindspore"] = None
import mindspeed_ms
for room in {[room for room in PURE if (PACKAGE / room).is_dir()]}:
    package = importlib.import_module("mindspeed_ms." + room)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "._kernels" not in module.name:
            importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_no_room_is_too_large():
    sizes = {}
    for path in FILES:
        room = _room(path)
        if room is not None:
            sizes[room] = sizes.get(room, 0) + path.read_text(encoding="utf-8").count("\n")
    largest = max(sizes, key=sizes.__getitem__)
    assert sizes[largest] <= LARGEST_SHARE * sum(sizes.values()), f"{largest}: {sizes[largest]}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_the_backend_touches_the_machine(path):
    if _room(path) == "backend":
        return
    text = path.read_text(encoding="utf-8")
    tree = _tree(path)
    for _, name in _imports(tree):
        assert not any(name == lib or name.startswith(lib + ".") for lib in COMMUNICATION), name
        private = name.startswith("mindspore._c_expression") or (
            name.startswith("mindspore.") and any(part.startswith("_") for part in name.split("."))
        )
        assert not private, f"{path} imports the private name {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
            is_os = isinstance(node.value, ast.Name) and node.value.id == "os"
            assert not is_os, f"{path}:{node.lineno} reads the environment"
    names_its_key = _room(path) == "toolkit"  # a key of MindFormers' files, which it hands on
    assert "device_target" not in text or names_its_key or path.name == "pretrain_gpt.py"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("get_context", "set_context", "set_device"), (
                f"{path}:{node.lineno} asks or tells MindSpore about its device"
            )


def test_modules_of_tests_have_names_of_their_own():
    """pytest imports them by name alone, whatever folder they are in."""
    found = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(found) > 100 and len(found) == len(set(found))


def test_unit_tests_mirror_the_rooms():
    """``tests/unit/<room>/``; what concerns every room is in ``house``."""
    for path in (ROOT / "tests" / "unit").rglob("test_*.py"):
        folder = path.relative_to(ROOT / "tests" / "unit").parts[0]
        assert folder in (*BELOW, "tools", "house"), f"{path} is in no room's folder"


@pytest.mark.parametrize("path", [*FILES, *TEST_FILES], ids=[*IDS, *TEST_IDS])
def test_files_and_functions_are_small(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, f"{path} has {lines} lines"
    allowed = LONG_FUNCTIONS.get(str(path.relative_to(ROOT)), set())

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{prefix}.{child.name}".lstrip(".")
                length = child.end_lineno - child.lineno + 1
                is_function = not isinstance(child, ast.ClassDef)
                assert not is_function or length <= MAX_FUNCTION_LINES or name in allowed, (
                    f"{path}: {name} has {length} lines"
                )
            visit(child, name)

    visit(_tree(path), "")


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_global_statement_and_no_print(path):
    for node in ast.walk(_tree(path)):
        assert not isinstance(node, ast.Global), f"{path}:{node.lineno} uses global"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            in_package = PACKAGE in path.parents
            assert not (in_package and node.func.id == "print"), f"{path}:{node.lineno} prints"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_import_inside_functions(path):
    """Except Ascend-only packages and MPI, which exist only where they are used, and what the
    benchmarks compare with or draw with when it is installed."""
    if path.parent.name in ("ascend", "benchmarks") or path.name in ("ascend.py", "cpu_mpi.py"):
        return
    for function in ast.walk(_tree(path)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node, name in _imports(function):
                pytest.fail(f"{path}:{node.lineno} imports {name} inside {function.name}")


def test_every_module_imports_on_cpu_without_a_launcher():
    for module in pkgutil.walk_packages(mindspeed_ms.__path__, "mindspeed_ms."):
        if not module.name.rpartition(".")[2].startswith("_kernels"):
            importlib.import_module(module.name)
