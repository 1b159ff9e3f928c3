# SPDX-License-Identifier: Apache-2.0
"""Every source file names its licence in a line that tools read."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LINE = "SPDX-License-Identifier: Apache-2.0"
KINDS = {".py": "#", ".sh": "#", ".toml": "#", ".cpp": "//", ".h": "//", ".html": "<!--"}
WHERE = ("mindspeed_ms", "tools", "benchmarks", "tests", "examples", "scripts", "docs", ".ci")


def _sources():
    """Files of the checkout that people write programs in; git's list where there is one."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        names = [ROOT / name for name in listed.stdout.split("\n") if name]
    else:
        names = [path for folder in WHERE for path in (ROOT / folder).rglob("*")]
        names += list(ROOT.glob("*.*"))
    return [path for path in names if path.is_file() and _comment(path)]


def _comment(path):
    with path.open("rb") as file:
        is_script = file.read(2) == b"#!"
    return KINDS.get(path.suffix, "#" if is_script else None)


def test_every_source_file_has_the_line():
    sources = _sources()
    assert len(sources) > 500, "the list of sources is broken"
    for path in sources:
        lines = path.read_text(encoding="utf-8").split("\n")
        is_second = lines[0].startswith("#!") or lines[0].lower().startswith("<!doctype")
        line = lines[1 if is_second else 0]
        assert line.startswith(f"{_comment(path)} {LINE}"), (
            f"{path.relative_to(ROOT)}: begin it with `{_comment(path)} {LINE}`, "
            "after a `#!` or doctype line"
        )


@pytest.mark.parametrize("name", ["LICENSE", "pyproject.toml"])
def test_the_licence_is_the_one_named(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "Apache License" in text if name == "LICENSE" else 'text = "Apache-2.0"' in text
