# SPDX-License-Identifier: Apache-2.0
"""Commands run as a user starts them."""

import pytest

OF_A_JOB = (
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT RANK_ID DEVICE_ID".split()
)


@pytest.fixture(autouse=True)
def _no_job(monkeypatch):
    """Tests of one rank in this process have left what a rank tells its script."""
    for name in OF_A_JOB:
        monkeypatch.delenv(name, raising=False)
