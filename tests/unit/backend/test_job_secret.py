# SPDX-License-Identifier: Apache-2.0
"""The secret of a job: where it comes from, who may read it, what a proof is worth."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_ms.backend import job_secret
from mindspeed_ms.backend.job_secret import VARIABLE

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(job_secret.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def key_file(home):
    return home / ".local" / "state" / "mindspeed_ms" / "job_key"


def test_the_key_file_is_made_once_and_only_its_user_can_read_it(home):
    first = job_secret.job_secret(29500)
    assert job_secret.job_secret(29500) == first
    assert job_secret.job_secret(29501) != first
    assert key_file(home).stat().st_mode & 0o777 == 0o600
    assert key_file(home).parent.stat().st_mode & 0o777 == 0o700
    assert len(key_file(home).read_bytes()) == 32
    assert [path.name for path in key_file(home).parent.iterdir()] == ["job_key"]


def test_the_variable_goes_before_the_file(home, monkeypatch):
    monkeypatch.setenv(VARIABLE, "a text that is long enough")
    first = job_secret.job_secret(1)
    monkeypatch.setenv(VARIABLE, "a text that is long enough!")
    assert job_secret.job_secret(1) != first
    assert not key_file(home).exists()


def test_a_short_secret_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv(VARIABLE, "xyzzy")
    with pytest.raises(RuntimeError, match="has 5 characters, a secret needs at least 16") as error:
        job_secret.job_secret(1)
    assert "xyzzy" not in str(error.value)


def test_processes_that_start_together_agree(home):
    script = "from mindspeed_ms.backend.job_secret import job_secret; print(job_secret(7).hex())"
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script]
    started = [
        subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1


@pytest.mark.parametrize("fault", ["readable", "writable_folder", "link", "short"])
def test_a_key_that_others_may_know_is_not_used(home, tmp_path, fault):
    job_secret.job_secret(1)
    path = key_file(home)
    old = path.read_bytes()
    if fault == "readable":
        path.chmod(0o644)
    elif fault == "writable_folder":
        path.parent.chmod(0o777)
    elif fault == "short":
        path.write_bytes(b"abc")
    else:
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_bytes(old)
    with pytest.raises((RuntimeError, OSError)):
        job_secret._key_in(path.parent)


def test_without_a_place_for_the_key_the_variable_is_asked_for(home, tmp_path, monkeypatch):
    nowhere = tmp_path / "file"
    nowhere.touch()
    monkeypatch.setenv("HOME", str(nowhere))
    job_secret.job_secret(1)  # the temporary folder will do
    monkeypatch.setattr(job_secret.tempfile, "gettempdir", lambda: str(nowhere))
    with pytest.raises(RuntimeError, match=f"no private place for a key file .* set {VARIABLE} to"):
        job_secret.job_secret(1)


def test_a_proof_holds_for_one_connection_one_side_and_one_secret():
    numbers = [job_secret.new_number() for _ in range(3)]
    proof = job_secret.client_proof(b"s", numbers[0], numbers[1])
    answer = job_secret.check_client(b"s", numbers[0], proof)
    assert job_secret.check_server(b"s", numbers[0], numbers[1], answer)
    assert job_secret.check_client(b"t", numbers[0], proof) is None
    assert job_secret.check_client(b"s", numbers[2], proof) is None
    assert job_secret.check_client(b"s", numbers[0], numbers[1] + answer) is None
    assert not job_secret.check_server(b"s", numbers[0], numbers[2], answer)
    assert not job_secret.check_server(b"s", numbers[0], numbers[1], job_secret.REFUSED)


def test_a_new_secret_is_long_and_new():
    assert len(job_secret.new_secret()) == 64
    assert job_secret.new_secret() != job_secret.new_secret()
