# SPDX-License-Identifier: Apache-2.0
"""The version comes from git's tags; there is one without tags, without git, in an sdist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mindspeed_ms

ROOT = Path(__file__).resolve().parents[3]
IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@example.org")


@pytest.fixture
def checkout(tmp_path):
    """What decides on the version, in a repository of its own with two commits."""
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "mindspeed_ms").mkdir()
    shutil.copy(ROOT / ".gitignore", tmp_path)
    _git(tmp_path, "init", "-q")
    _commit(tmp_path)
    _commit(tmp_path)
    return tmp_path


def _git(folder, *words):
    subprocess.run(["git", *IDENTITY, *words], cwd=folder, check=True, capture_output=True)


def _commit(folder):
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "--allow-empty", "-m", "a change")


def _version(folder):
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def _next():
    return re.search(r'^NEXT = "(.+)"', (ROOT / "setup.py").read_text("utf-8"), re.M).group(1)


def test_without_tags_it_is_the_next_one(checkout):
    assert _version(checkout) == f"{_next()}.dev2"


def test_a_tag_is_the_version_and_what_follows_is_on_the_way(checkout):
    _git(checkout, "tag", "v1.2.3")
    assert _version(checkout) == "1.2.3"
    written = (checkout / "mindspeed_ms" / "_version.py").read_text("utf-8")
    assert "SPDX-License-Identifier" in written and '__version__ = "1.2.3"' in written
    _commit(checkout)
    assert _version(checkout) == "1.2.4.dev1"


def test_without_git_and_in_an_sdist(checkout):
    shutil.rmtree(checkout / ".git")
    assert _version(checkout) == f"{_next()}.dev0"
    (checkout / "PKG-INFO").write_text(
        "Metadata-Version: 2.1\nName: mindspeed_ms\nVersion: 1.2.3\n"
    )
    assert _version(checkout) == "1.2.3"


def test_a_checkout_that_was_never_installed_names_the_next_one():
    text = (ROOT / "mindspeed_ms" / "__init__.py").read_text("utf-8")
    assert f'__version__ = "{_next()}.dev0"' in text
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", mindspeed_ms.__version__)


def test_the_changes_are_told_newest_first():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    heads = re.findall(r"^## (\S+)(?: - (\d{4}-\d\d-\d\d))?$", text, re.M)
    assert heads[0] == ("Unreleased", "")
    released = [tuple(map(int, version.split("."))) for version, _ in heads[1:]]
    assert released == sorted(released, reverse=True) and all(date for _, date in heads[1:])
    assert tuple(map(int, _next().split("."))) > released[0]
