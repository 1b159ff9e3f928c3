# SPDX-License-Identifier: Apache-2.0
"""Commands and plain runs that are ended at random moments: see ``command_killer``."""

from __future__ import annotations

import command_killer
import pytest
import run_killer
import server_killer
import trainer_killer

pytestmark = pytest.mark.e2e


def attacked(name, folder, documents=1500):
    command_killer.corpus(folder, documents)
    return command_killer.Attack(command_killer.CASES[name], folder)


@pytest.mark.parametrize("way", ["worker KILL", "main KILL", "group INT"])
def test_preprocessing_ends_with_all_its_processes(tmp_path, way):
    attack = attacked("preprocess", tmp_path)
    attack.kill(way, 0.7 * attack.seconds)
    if way == "main KILL":  # who comes next clears away what was left
        attack.finish()


def test_a_library_that_does_not_listen_holds_nothing_up(tmp_path):
    attack = attacked("bpe", tmp_path)
    attack.kill("main TERM twice", 0.6 * attack.seconds)


@pytest.mark.slow
@pytest.mark.parametrize("name", command_killer.CASES)
def test_commands_are_ended_at_any_moment(tmp_path, name, first_seed):
    seen = command_killer.attack(name, tmp_path, 22, first_seed)
    assert sum(seen.values()) == 22 and seen["finished before"] < 15, seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("plain/async", "plain/lora", "torchrun/plain", "torchrun/async", "torchrun/handler"),
        *("mpiexec/plain", "own_msrun/lora", "msrun/async"),
    ],
)
def test_runs_are_ended_at_any_moment(tmp_path, name, first_seed):
    launcher, kind = name.split("/")
    run = run_killer.Run(launcher, run_killer.KINDS[kind], tmp_path)
    seen = run.attack(12, first_seed)
    assert sum(seen.values()) >= 12, seen


@pytest.mark.slow
def test_a_trainer_is_ended_at_any_moment(tmp_path, first_seed):
    seen = trainer_killer.attack(tmp_path, 20, first_seed)
    assert seen["finished before"] < 10, seen


@pytest.mark.slow
@pytest.mark.parametrize("launcher", server_killer.LAUNCHERS)
def test_a_server_is_ended_at_any_moment(tmp_path, first_seed, launcher):
    attacked = server_killer.attack(launcher, tmp_path, len(server_killer.WAYS), first_seed)
    assert sum(attacked.seen.values()) == len(server_killer.WAYS)
