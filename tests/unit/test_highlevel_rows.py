"""The list of promises names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "highlevel_rows.md").read_text(encoding="utf-8")
LINES = [line for line in TEXT.splitlines() if re.match(r"\| [A-D]\d", line)]


def functions(path):
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split("|")[1].strip())
def test_every_row_names_tests_that_exist(line):
    names = re.findall(r"`([\w/.]*)::(\w+)`", line)
    file = ""
    assert names
    for path, name in names:
        file = path or file
        assert name in functions(file), f"{file}::{name}"


def test_the_rows_of_the_toolkit_and_of_the_scripts_are_all_there():
    rows = {row for line in LINES for row in line.split("|")[1].split()}
    wanted = {f"A{number}" for number in range(1, 18)} | {f"B{number}" for number in range(1, 20)}
    assert wanted | {f"D{number}" for number in (8, 9, 10, 11, 14)} <= rows
