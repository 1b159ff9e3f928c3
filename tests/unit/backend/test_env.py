# SPDX-License-Identifier: Apache-2.0
"""Environment variables: defaults never override the user, cores are shared by the ranks."""

import os

import pytest

from mindspeed_ms.backend import env, launcher

SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "MS_WORKER_NUM": "8"}


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    names = ("MS_ROLE", "MS_WORKER_NUM", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
    names += ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")
    for name in (*names, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, 1),
        ({"MPI_LOCALNRANKS": "4"}, 4),
        ({"MS_WORKER_NUM": "8"}, 1),
        ({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "8"}, 8),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 4),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "2"}, 2),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "1"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 1),
    ],
)
def test_ranks_share_the_cores(monkeypatch, variables, ranks):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher, "find", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16))
    assert env.ranks_of_this_host() == ranks
    env.prepare_import()
    assert env.get_int("OMP_NUM_THREADS") == 16 // ranks


def test_ranks_of_other_hosts_do_not_take_cores_here(monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setenv("MS_WORKER_NUM", "64")
    monkeypatch.setattr(launcher, "find", lambda: launcher.Launcher(1, "msrun", local_ranks=4))
    assert env.ranks_of_this_host() == 4


def test_the_users_choice_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    env.prepare_import()
    assert env.get("OMP_NUM_THREADS") == "3"


def test_numbers_must_be_numbers(monkeypatch):
    monkeypatch.setenv("RANKS_OF_A_TEST", "many")
    with pytest.raises(ValueError, match="RANKS_OF_A_TEST is 'many'"):
        env.get_int("RANKS_OF_A_TEST")
    env.remove("RANKS_OF_A_TEST")
    assert env.get_int("RANKS_OF_A_TEST", 7) == 7
    env.put("RANKS_OF_A_TEST", 5)
    assert env.get_int("RANKS_OF_A_TEST") == 5
    env.remove("RANKS_OF_A_TEST")
