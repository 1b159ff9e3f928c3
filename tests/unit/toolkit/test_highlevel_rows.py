# SPDX-License-Identifier: Apache-2.0
"""The list of promises names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
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


def test_all_rows_are_there():
    rows = {row for line in LINES for row in line.split("|")[1].split()}
    counts = {"A": 17, "B": 19, "C": 25, "D": 14}
    every = {f"{part}{number}" for part, n in counts.items() for number in range(1, n + 1)}
    rest = set(re.findall(r"\b[A-D]\d+\b", TEXT.partition("Without a test of their own")[2]))
    assert rows | rest == every and not rows & rest
