# SPDX-License-Identifier: Apache-2.0
"""Fixtures and the order of tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent))  # a clean checkout is tested, not an installed package

from dist import RankPools  # noqa: E402
from job_peers import running  # noqa: E402, F401  (a fixture)

settings.register_profile("house", deadline=None)  # a busy machine is no fault of an example
settings.load_profile("house")


def pytest_addoption(parser):
    """``--first-seed N``: random kills, clients and restarts draw from seed N on instead of 0."""
    parser.addoption("--first-seed", type=int, default=0, help="first seed of random tests")


@pytest.fixture(scope="session")
def first_seed(request):
    """What random tests add to their seeds."""
    return request.config.getoption("--first-seed")


def pytest_collection_modifyitems(items):
    """Mark tests by their folder, and run the multi-rank ones grouped by world size.

    Changing the world size starts new processes, so tests of equal ``ranks`` run side by side.
    """
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in ("ranks", "e2e"):
            item.add_marker(folder)
    items.sort(key=_group)


def _group(item):
    is_multi_rank = item.get_closest_marker("ranks") is not None
    callspec = getattr(item, "callspec", None)
    ranks = callspec.params.get("ranks", 4) if callspec else 4
    return (is_multi_rank, ranks if is_multi_rank and isinstance(ranks, int) else 0)


@pytest.fixture(scope="session")
def _rank_pools():
    pools = RankPools()
    yield pools
    pools.close()


@pytest.fixture
def dist_run(_rank_pools):
    """``dist_run(worker, ranks=4, timeout=60, **params)`` -> the return value of every rank.

    ``worker`` is a module-level function; it is called as ``worker(**params)`` on every rank after
    ``comm.init_process_group()``, with fixed seeds and no model-parallel groups. Parameters and
    results are pickled: use numpy arrays and plain values.
    """

    def run(worker, ranks=4, timeout=60.0, **params):
        __tracebackhide__ = True
        return _rank_pools.run(worker, ranks, timeout, params)

    return run
