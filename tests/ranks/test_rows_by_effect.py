# SPDX-License-Identifier: Apache-2.0
"""Every row of the guide's tables by its effect, and the page that says what was seen."""

import guide_rows
import pytest

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
VARYING = ("loss", "exact loss", "lines", "files", "bytes of files", "messages")
RUN = [row for row in guide_rows.ROWS if row.sees]


@pytest.fixture(scope="module")
def page():
    """Line of each argument in the document."""
    lines = guide_rows.DOCUMENT.read_text(encoding="utf-8").splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


@pytest.mark.parametrize("row", RUN, ids=[row.flag for row in RUN])
def test_a_row_has_its_effect(dist_run, page, row):
    off, on = guide_rows.seen_of(row, dist_run)
    assert off != on
    line = guide_rows.line_in_table(row, (off, on))
    if row.sees in VARYING:  # with the kernels, the folder's name, or what else a run says
        assert page[row.flag].rsplit("| ", 1)[1] == line.rsplit("| ", 1)[1]
        assert page[row.flag].count("|") == line.count("|")
    else:
        assert page[row.flag] == line
