"""The house rules: layers, sizes, and what only the backend may touch."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import mindspeed_ms

ROOT = Path(mindspeed_ms.__file__).parents[1]
PACKAGE = ROOT / "mindspeed_ms"
LAYERS = ("backend", "ops", "core", "legacy", "training")
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
    return sorted([*own, ROOT / "pretrain_gpt.py"])


FILES = _files()
IDS = [str(path.relative_to(ROOT)) for path in FILES]


def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _layer(path):
    """Index of the layer a file belongs to; entry points lie above all."""
    if PACKAGE not in path.parents:
        return len(LAYERS)
    parts = path.relative_to(PACKAGE).parts
    return LAYERS.index(parts[0]) if parts[0] in LAYERS else None


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module or ""
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_one_way(path):
    mine = _layer(path)
    for _, name in _imports(_tree(path)):
        parts = name.split(".")
        if parts[0] != "mindspeed_ms" or len(parts) < 2 or parts[1] not in LAYERS:
            continue
        if mine is None:
            pytest.fail(f"the package root imports {name}")
        assert LAYERS.index(parts[1]) <= mine, f"{path} imports {name} from a layer above"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_the_backend_touches_the_machine(path):
    if _layer(path) == 0:
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
    assert "device_target" not in text or path.name == "pretrain_gpt.py"


@pytest.mark.parametrize("path", FILES, ids=IDS)
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
        if isinstance(node, ast.Global):
            assert path.name == "parallel_state.py", f"{path}:{node.lineno} uses global"
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
