# SPDX-License-Identifier: Apache-2.0
"""The page of the guide's rows: complete, in the guide's order, with tests that exist."""

import ast

import guide_rows
import pytest
from test_guide_arguments import GUIDE

from mindspeed_ms.config import ModelParallelConfig, OptimizerConfig, TrainingConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.engine.model_chunks import data_parallel_config

ROOT = guide_rows.DOCUMENT.parents[1]
ELSEWHERE = [row for row in guide_rows.ROWS if row.shown]
TOLD = [row for row in guide_rows.ROWS if row.says]


def test_every_row_of_the_guide_is_there():
    names = [row.flag for row in guide_rows.ROWS]
    assert len(names) == len(set(names)) == 124
    assert set(names) == {row[0] for row in GUIDE}
    text = guide_rows.DOCUMENT.read_text(encoding="utf-8")
    assert text.startswith(guide_rows.HEAD)
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == names


@pytest.mark.parametrize("row", guide_rows.ROWS, ids=[row.flag for row in guide_rows.ROWS])
def test_a_row_says_what_it_needs_to(row):
    assert bool(row.sees) + bool(row.shown) + bool(row.says) == 1
    if not row.sees:
        page = guide_rows.DOCUMENT.read_text(encoding="utf-8").splitlines()
        assert guide_rows.line_in_table(row, None) in page
    else:
        assert row.on != row.off


@pytest.mark.parametrize("row", ELSEWHERE, ids=[row.flag for row in ELSEWHERE])
def test_tests_elsewhere_exist(row):
    path, _, name = row.shown.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    functions = {
        node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)
    }
    assert name in functions if name else functions


@pytest.mark.parametrize("row", TOLD, ids=[row.flag for row in TOLD])
def test_what_changes_nothing_says_so(row):
    assert row.says in guide_rows.line_of(row)


@pytest.mark.parametrize(("stage", "overlaps"), [(0, True), (1, False)])
def test_stages_behind_the_first_reduce_at_the_end(monkeypatch, stage, overlaps):
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda: stage)
    training = TrainingConfig(wrap_with_ddp=True, overlap_grad_reduce=True, delay_grad_reduce=True)
    config = data_parallel_config(training, ModelParallelConfig(), OptimizerConfig(), 10)
    assert config.overlap_grad_reduce is overlaps
