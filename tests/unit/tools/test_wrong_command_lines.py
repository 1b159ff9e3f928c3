# SPDX-License-Identifier: Apache-2.0
"""Every tool answers a mistake of its user in one line, with status 2."""

import importlib
from pathlib import Path

import pytest

from mindspeed_ms.toolkit.data import create_lm_data
from tools import pipeline_timeline

TOOLS = Path(__file__).parents[3] / "tools"
WITHOUT_FLAGS = {"families_document", "flags_document", "record_families"}
"""They write files of this project."""
NAMES = sorted(
    ".".join(path.relative_to(TOOLS.parent).with_suffix("").parts)
    for path in TOOLS.rglob("*.py")
    if "def main(" in path.read_text(encoding="utf-8") and path.stem not in WITHOUT_FLAGS
)


def tool(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs {error.name}")


@pytest.mark.parametrize("module", [*NAMES, create_lm_data.__name__])
@pytest.mark.parametrize("words", [["--no-such-flag-of-mine"], ["a", "b", "--zz", "1e3"]])
def test_a_wrong_command_line_is_one_line(module, words, monkeypatch, capsys):
    main = tool(module).main
    monkeypatch.setattr("sys.argv", [module, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert "error: " in line and not captured.out


@pytest.mark.parametrize("content", [None, "", "[" * 100_000, "{}", '{"traceEvents": [{}]}', "5"])
def test_a_timeline_that_is_none(content, tmp_path, monkeypatch, refused):
    path = tmp_path / "measured.json"
    if content is not None:
        path.write_text(content)
    words = ["x", "--measured", str(path), "--output", str(tmp_path / "out.png")]
    monkeypatch.setattr("sys.argv", words)
    assert "error: " in refused(pipeline_timeline.main)
