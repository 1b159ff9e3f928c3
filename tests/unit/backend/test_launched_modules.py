# SPDX-License-Identifier: Apache-2.0
"""A module that is not there is one line of the launcher, not one of every rank."""

import sys

import pytest

from mindspeed_ms.backend.torchrun import deepspeed, msrun, run
from mindspeed_ms.backend.torchrun.modules import require_module
from mindspeed_ms.backend.torchrun.options import LaunchError

WRONG = [
    ("no.such.module", "there is no module no.such.module; check the name, and PYTHONPATH"),
    ("json.nothing", "there is no module json.nothing"),
    ("json.tool.inner", "there is no module json.tool.inner"),
    ("json", "json is a package without a __main__; name a module of it"),
    ("a-b", "'a-b' is not the name of a module"),
    ("", "'' is not the name of a module"),
    ("pkg..x", "'pkg..x' is not the name of a module"),
    ("__main__.x", "there is no module __main__.x"),
]


@pytest.mark.parametrize(("name", "line"), WRONG)
def test_modules_that_cannot_be_run_are_named(name, line):
    with pytest.raises(LaunchError, match=line):
        require_module(name)


@pytest.mark.parametrize("main", [run.main, deepspeed.main])
def test_launchers_say_it_before_ranks_start(monkeypatch, capsys, main):
    words = ["--nproc-per-node", "2"] if main is run.main else ["--num_gpus", "2"]
    words += ["--module", "no.such", "x"]
    assert (main(words=words) if main is run.main else main(words)) == 2
    assert "error: there is no module no.such; check the name" in capsys.readouterr().err


def test_msrun_says_it_too(capsys):
    words = ["--worker_num", "2", "--local_worker_num", "2", "python", "-m"]
    for name, line in ((["no.such"], "there is no module no.such"), ([], "'' is not the name")):
        assert msrun.main([*words, *name]) == 2
        assert line in capsys.readouterr().err


def test_nothing_is_imported_and_the_current_folder_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "packed" / "start.py").write_text("")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "__main__.py").write_text("")
    before = list(sys.path)
    for name in ("packed.start", "plain", "json.tool"):
        require_module(name)
    assert sys.path == before and "packed" not in sys.modules


def test_what_is_no_script_is_not_run(tmp_path, capsys):
    """As behind a flag that takes no value."""
    (tmp_path / "a.yaml").write_text("x: false")
    words = ["--nproc-per-node", "1", "--virtual-local-rank", str(tmp_path / "a.yaml"), "x.py"]
    assert run.main(words=words) == 2
    words = ["--worker_num", "1", "--local_worker_num", "1", str(tmp_path / "a.yaml"), "x.py"]
    assert msrun.main(words) == 2
    assert capsys.readouterr().err.count("a.yaml is no Python script; name the script before") == 2


@pytest.mark.parametrize("folder", ["/dev/full", "/dev/full/x", "n" * 300, "/proc/nowhere"])
def test_folders_for_logs_that_cannot_be_made_are_named(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.py").write_text("")
    words = ["--nproc-per-node", "2", "--log-dir", folder, "one.py"]
    assert run.main(words=words) == 2
    words = ["--worker_num", "2", "--local_worker_num", "2", "--log_dir", folder, "one.py"]
    assert msrun.main(words) == 2
    assert capsys.readouterr().err.count(f"the folder for logs {folder} cannot be made (") == 2


def test_scripts_whose_names_are_too_long_are_not_there(tmp_path, monkeypatch, capsys):
    name = "n" * 300
    assert run.main(words=["--nproc-per-node", "2", name, "x"]) == 2
    assert deepspeed.main(["--num_gpus", "2", "--hostfile", name, name, "x"]) == 2
    assert msrun.main(["--worker_num", "2", "--local_worker_num", "2", name, "x"]) == 2
    assert capsys.readouterr().err.count(f"there is no script {name}") == 3


def test_a_plan_stands_in_for_a_script_that_is_not_here(tmp_path, monkeypatch, capsys):
    """Both launchers: published scripts name programs of another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "run", lambda part, *_: started.append(part.words) or 0)
    monkeypatch.setattr(msrun, "run", run.run)
    started = []
    script = ["/opt/posttrain_gpt.py", "--dry-run", "--lr", "1"]
    assert run.main(words=["--nproc-per-node", "2", *script]) == 0
    assert msrun.main(["--worker_num", "2", "--local_worker_num", "2", *script]) == 0
    assert started == [("-m", "mindspeed_ms.command", "train", *script[1:])] * 2
    assert capsys.readouterr().err.count("is not here; planned as pretrain_gpt.py") == 2
