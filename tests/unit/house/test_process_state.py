# SPDX-License-Identifier: Apache-2.0
"""What lasts in a process beside the objects that somebody holds: short lists with reasons.

A new entry is a decision: what a run owns belongs into its ``RunState``, or is passed.
"""

from __future__ import annotations

import ast
from pathlib import Path

import mindspeed_ms

PACKAGE = Path(mindspeed_ms.__file__).parent

STATE = {
    "core/run_state.py: _ACTIVE": "the run that Megatron's functions without a run argument mean",
    "backend/bars.py: _open": "bars are drawn on the terminal of the process",
    "backend/autograd.py: _depth": "which tape of the process is walked",
    "backend/comm.py: _state": "MPI and HCCL start once per process; making a group is collective",
    "backend/launch.py: _holder": "a process joins one job, and stays in it to its end",
    "core/dist_checkpointing/run_folder.py: _HELD": "folders that runs of this process save to",
    "command/workers.py: _worker": "the encoder of a process that does nothing else",
    "backend/progress.py: here": "where this process is; heartbeats tell it",
    "backend/script_context.py: _said": "lines that are given once per process",
    "data/tokenizers/chat_templates.py: _MARKS": "of one rendering, as contexts are",
    "data/tokenizers/template_limits.py: _STEPS": "of one rendering, as contexts are",
    "ops/selection.py: chosen": "the kernels of this machine, whatever is computed",
    "files/whole.py: _given": "names of files that this process has begun; a signal removes them",
    "toolkit/context.py: _ASKED": "MindSpore's context, of which it is a part, is the process's",
    "toolkit/messages.py: _SAID": "warnings that are given once per process",
    "toolkit/script_tools.py: logger": "the log that MindFormers' scripts import by this name",
    "toolkit/registry.py: DATASETS": "names are registered for the process, as classes are",
    "toolkit/registry.py: MODELS": "names are registered for the process, as classes are",
    "toolkit/registry.py: PROCESSORS": "names are registered for the process, as classes are",
    "toolkit/registry.py: TOKENIZERS": "names are registered for the process, as classes are",
}
"""Objects that change while the process lives."""

CONSTANTS = {
    "backend/comm.py: _alone": "has no attributes",
    "backend/autograd.py: requires_grad": "a function",
    "backend/job_secret.py: REFUSED": "bytes",
    "backend/memory.py: flat_view": "a function",
    "backend/numpy_types.py: NUMPY_OF": "a table; the test of tables covers it",
    "config/coercion.py: _SHORT": "sizes of a printed value",
    "core/parameter.py: _REPLICATED": "frozen",
    "backend/bars.py: SILENT": "draws nothing",
    "core/timers.py: _OFF": "a context that does nothing",
    "data/blending.py: _UNDECIDED": "a number",
    "data/indexed_dataset.py: _HEADER": "a format of the struct module",
    "data/mindrecord_file.py: _BYTES": "a table of numbers",
    "data/mindrecord_file.py: _LENGTH": "a format of the struct module",
    "data/token_rows.py: _INT32": "limits of a type",
    "data/tokenizers/pipelines.py: _of_gpt2_files": "a function",
    "formats/containers/ahead.py: _END": "a sentinel",
    "formats/containers/safe_pickle.py: SafeUnpickler.dispatch": "a table of methods",
    "formats/containers/torch_file.py: _LOCAL_HEADER": "a format of the struct module",
    "formats/huggingface.py: FORMAT": "has no attributes",
    "formats/megatron.py: FORMAT": "has no attributes",
    "formats/mindspore_dirs.py: FORMAT": "has no attributes",
    "formats/own_format.py: FORMAT": "has no attributes",
    "formats/peft.py: FORMAT": "has no attributes",
    "formats/quantized.py: FP4_VALUES": "a table of numbers",
    "formats/quantized.py: FP8_VALUES": "a table of numbers",
    "formats/torch_dist.py: FORMAT": "has no attributes",
    "models/families/flex_olmo/__init__.py: FAMILY": "frozen",
    "models/families/glm4_moe_lite/__init__.py: FAMILY": "frozen",
    "models/families/glm_moe_dsa/__init__.py: FAMILY": "frozen",
    "models/families/gpt_bigcode/__init__.py: FAMILY": "frozen",
    "models/families/gptj/__init__.py: CODEGEN": "frozen",
    "models/families/granitemoe/__init__.py: SHARED": "frozen",
    "models/families/hyperclovax/__init__.py: FAMILY": "frozen",
    "models/families/kimi_k2/__init__.py: FAMILY": "frozen",
    "models/families/rules.py: REQUIRED": "a sentinel",
    "ops/cpu/library.py: native": "entry points of a loaded library",
    "ops/portable/activations.py: _CUBIC": "a number",
    "ops/portable/activations.py: _SQRT_2_OVER_PI": "a number",
    "ops/portable/dropout.py: _LOW": "a number",
    "training/flags/__init__.py: BY_NAME": "a table; the test of tables covers it",
    "toolkit/compat/guard.py: PATH": "a path",
    "toolkit/tokenization/pangualpha.py: _WRITTEN": "a table; the test of tables covers it",
    "toolkit/yaml_config.py: PRESETS": "a path",
    "toolkit/data/streams.py: _END": "a sentinel",
    "training/flags/row.py: SAME": "a sentinel",
    "training/flags/row.py: UNSET": "a sentinel",
}
"""Objects that cannot change, though their kind does not show it."""

KEPT_RESULTS = {
    "backend/device.py: initialize": "MindSpore's mode is one of the process",
    "backend/comm.py: _check_count": "a pure function of its arguments",
    "backend/comm.py: _check_reduction": "a pure function of its arguments",
    "backend/launcher.py: find": "who started this process",
    "files/whole.py: _machine": "the machine and its start",
    "config/block_options.py: shapes_of": "a pure function of its arguments",
    "data/tokenizers/template_limits.py: sandbox_class": "a class over a late library",
    "config/section.py: _fields_by_name": "of a class",
    "config/section.py: _hints": "of a class",
    "config/section.py: field_docs": "of a class",
    "config/section.py: field_names": "of a class",
    "config/section.py: section_fields": "of a class",
    "data/tokenizers/byte_level.py: symbols_of_bytes": "a constant table",
    "data/tokenizers/chat_templates.py: _compiled": "a pure function of a template's text",
    "data/tokenizers/chat_templates.py: _environment": "settings of a library's sandbox",
    "data/tokenizers/chat_templates.py: _generation_extension": "a class",
    "data/tokenizers/chat_templates.py: _namespace_class": "a class",
    "engine/agreement.py: content_of": "of a file's bytes; size and time of change are arguments",
    "data/native.py: native_indices": "a loaded library",
    "formats/containers/digest.py: sums_function": "of a loaded library",
    "formats/containers/native.py: function": "of a loaded library",
    "formats/containers/new_file.py: _of_linux": "of a loaded library",
    "ops/ascend/attention.py: _compressed_mask": "a constant that takes memory on the device",
    "ops/ascend/attention.py: _flash": "an operator without state; building it takes time",
    "ops/ascend/attention.py: _flash_grad": "an operator without state; building it takes time",
    "ops/ascend/flat.py: _fused_adamw": "an operator without state; building it takes time",
    "ops/cpu/library.py: loading": "a loaded library",
    "models/model.py: _of_layer": "a pure function of its arguments",
    "planning/parameters.py: _of_place": "of a configuration, which does not change",
    "planning/parameters.py: _teacher": "of a configuration, which does not change",
    "planning/parameters.py: _total": "of a description, which does not change",
    "plan/schedule_plan.py: plans": "a pure function of its arguments",
    "planning/parameters.py: _model_spec": "a pure function of its arguments",
    "training/command_line.py: table_parser": "of the flag table; parsing does not change it",
}
"""Results that are computed once; they depend on nothing that changes."""

FOREIGN = {
    "backend/launch.py: sys.excepthook": "a rank that fails ends its job",
    "backend/autograd.py: cls.forward": "a class of our own, as it is made",
    "backend/autograd.py: Function.apply": "a class of our own, while a model serves",
    "formats/containers/safe_pickle.py: SafeUnpickler.dispatch": "a class of our own",
    "backend/script_context.py: context.set_context": "on request, for scripts that call it",
    "backend/script_context.py: ms.set_context": "on request, for scripts that call it",
    "backend/script_context.py: ms.set_device": "on request, for scripts that call it",
    "training/entry.py: sys.excepthook": "a script ends in one line; installed at most once",
    "command/dispatch.py: sys.argv": "a sub-command sees its own words",
    "backend/torchrun/worker.py: sys.argv": "a script that is started sees its own words",
}
"""Attributes of other modules and classes that are set."""

UNCHANGING = {
    *("MappingProxyType", "frozenset", "tuple", "TypeVar", "compile", "Path", "getLogger"),
    *("int", "float", "cast", "field"),
}
"""Calls whose results nobody can change; a field's default is made for each object."""

DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
CHANGING = {
    *("append", "add", "clear", "discard", "extend", "insert", "pop", "popitem", "remove"),
    *("setdefault", "update", "sort", "reverse"),
}

TREES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.is_relative_to(PACKAGE / "toolkit/compat/path")  # packages of their own
}


def last_name(node):
    """``c`` of the expression ``a.b.c[d](e)``."""
    while isinstance(node, (ast.Subscript, ast.Call)):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def frozen_classes():
    """Classes of the package whose objects cannot be changed."""
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                words = [
                    word
                    for decorator in node.decorator_list
                    if isinstance(decorator, ast.Call)
                    for word in decorator.keywords
                ]
                is_frozen = any(word.arg == "frozen" and word.value.value for word in words)
                if is_frozen or {last_name(base) for base in node.bases} & {"NamedTuple", "Enum"}:
                    yield node.name


def functions_with_unchanging_results():
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                if last_name(node.returns) in ("tuple", "Mapping", "frozenset", "str"):
                    yield node.name


def statements(body):
    """Statements that run when a module is imported, those of classes included."""
    for node in body:
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, part, ()))


def assignments():
    """(file, target, value) of what is assigned when a module is imported."""
    for path, tree in TREES.items():
        for node in statements(tree.body):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    yield path, ast.unparse(target), node.value
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                yield path, ast.unparse(node.target), node.value


def test_objects_that_last_are_known():
    unchanging = UNCHANGING | {*frozen_classes(), *functions_with_unchanging_results()}
    found = {
        f"{path}: {target}"
        for path, target, value in assignments()
        if isinstance(value, ast.Call) and last_name(value) not in unchanging
        if target not in ("__all__", "__getattr__")
    }
    known = {*STATE, *CONSTANTS}
    assert found - known == set(), "new objects that last; see the docstring"
    assert set(STATE) <= found, "no longer there"


def writes(tree):
    """(line, expression that is changed in place) within functions."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    for node in (node for function in functions for node in ast.walk(function)):
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield node.lineno, node.value
        elif isinstance(node, ast.AugAssign):
            yield node.lineno, node.target
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in CHANGING:
                yield node.lineno, node.func.value


def test_tables_are_never_written():
    """A list, set or dict of a module or class is a constant: nobody changes one of its name."""
    tables = {
        last_name(ast.parse(target, mode="eval").body)
        for _, target, value in assignments()
        if isinstance(value, DISPLAYS)
    }
    changing = {
        "_started",  # schedulers that this process has to reap
        "_SHARED_TUPLES",  # one for each pattern of arguments that need gradients
    }
    constants = ({name for name in tables if name.isupper()} | {"BY_NAME"}) - changing
    assert len(constants) > 20
    read = {"yaml_implicit_resolvers"}  # PyYAML's name; filled by its own method
    others = {name for name in tables if not name.isupper()} - changing - read
    assert others <= {"__all__", "__slots__"}
    for path, tree in TREES.items():
        for line, changed in writes(tree):
            assert last_name(changed) not in constants, f"{path}:{line} changes a table"


def test_results_that_are_kept_are_known():
    found = {
        f"{path}: {node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and {last_name(one) for one in node.decorator_list} & {"cache", "lru_cache", "per_class"}
    }
    assert found - set(KEPT_RESULTS) == set(), "new results that are kept; say why they may be"


def test_attributes_of_modules_and_classes_are_not_set():
    found = set()
    for path, tree in TREES.items():
        names = {"cls"}
        state = {name.rpartition(" ")[2] for name in STATE}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ClassDef):
                names.add(node.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                if isinstance(node.value, ast.Name) and node.value.id in names - state:
                    found.add(f"{path}: {ast.unparse(node)}")
    assert found == set(FOREIGN)
