# SPDX-License-Identifier: Apache-2.0
"""How much of a step is plumbing."""

from __future__ import annotations

import logging

import pytest

from benchmarks.step_calls import count_calls

pytestmark = pytest.mark.ranks

MOST_CALLS = 4000
"""Python calls of a step of the small example on two ranks. Lower it, never raise it."""


def worker():
    logging.getLogger("mindspeed_ms").setLevel(logging.WARNING)
    return sum(count_calls([]).values())


def test_a_step_calls_what_was_chosen(dist_run):
    for calls in dist_run(worker, ranks=2):
        assert 1000 < calls <= MOST_CALLS
