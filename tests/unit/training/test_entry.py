# SPDX-License-Identifier: Apache-2.0
"""A user's mistake ends in one line and a status; a mistake of ours keeps its traceback."""

import signal
import sys
from pathlib import Path

import pytest

import mindspeed_ms
from mindspeed_ms.engine.errors import RunFailure
from mindspeed_ms.training.entry import tell_user_errors, user_errors

PACKAGE = Path(mindspeed_ms.__file__).parent


def run_as(path, source, **names):
    """Run code as if it stood in a file."""
    exec(compile(source, str(path), "exec"), names)


def run_as_ours(source, **names):
    run_as(PACKAGE / "engine" / "made_up.py", f"def work():\n    {source}\nwork()", **names)


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, FileNotFoundError, NotImplementedError])
@pytest.mark.parametrize("is_ours", [True, False], ids=["package", "tool"])
@pytest.mark.parametrize("during_training", [True, False])
def test_input_errors_become_one_line(kind, is_ours, during_training, capsys):
    error = kind("hidden_size is 7;\n   use 8")
    with pytest.raises(SystemExit) as end, user_errors(during_training):
        if is_ours:
            run_as_ours("raise error", error=error)
        raise error
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: hidden_size is 7; use 8\n"


def test_a_run_that_fails_is_not_the_users_mistake(capsys):
    with pytest.raises(SystemExit) as end, user_errors(during_training=True):
        run_as_ours("raise error", error=RunFailure("iteration 3: lm loss is nan"))
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: iteration 3: lm loss is nan\n"


BUGS = {
    "{}['x']": KeyError,
    "[][0]": IndexError,
    "1 + 'a'": TypeError,
    "assert False": AssertionError,
    "None.x": AttributeError,
    "raise KeyError('x')": KeyError,
    "int('seven')": ValueError,
    "import numpy; numpy.ones(2) + numpy.ones(3)": ValueError,
}


@pytest.mark.parametrize("source", BUGS)
def test_a_bug_keeps_its_traceback(source, capsys):
    with pytest.raises(BUGS[source]), user_errors(during_training=True):
        run_as_ours(source)
    assert capsys.readouterr().err == ""


def test_what_files_hold_is_told_with_its_place(tmp_path, capsys):
    with pytest.raises(SystemExit) as end, user_errors():
        run_as_ours("int('seven')")
    assert end.value.code == 2
    place = "ValueError in mindspeed_ms/engine/made_up.py, work"
    assert capsys.readouterr().err == (
        f"error: invalid literal for int() with base 10: 'seven' ({place})\n"
    )
    for during_training in (False, True):
        with pytest.raises(SystemExit), user_errors(during_training):
            run_as_ours("open(name)", name=str(tmp_path / "absent"))
        assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("during_training", [True, False])
def test_errors_of_the_users_own_code_keep_their_traceback(during_training, tmp_path):
    """Called by the package, as a model provider is."""
    script = "def provider():\n    raise ValueError('of mine')"
    names = {}
    exec(compile(script, str(tmp_path / "script.py"), "exec"), names)
    with pytest.raises(ValueError, match="of mine"), user_errors(during_training):
        run_as_ours("provider()", provider=names["provider"])


def hook_result(source):
    try:
        run_as("/home/user/script.py", "ours()", ours=lambda: run_as_ours(source))
    except Exception as error:  # noqa: BLE001  (what the interpreter does at the end of a script)
        try:
            sys.excepthook(type(error), error, error.__traceback__)
        except SystemExit as end:
            return end.code
    return None


def test_scripts_end_in_one_line_notebooks_get_the_exception(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", lambda *error: sys.stderr.write("traceback\n"))
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    tell_user_errors()
    assert hook_result("raise ValueError('use 8')") is None
    assert capsys.readouterr().err == "traceback\n"
    monkeypatch.delattr(sys, "ps1")
    tell_user_errors()
    hook = sys.excepthook
    tell_user_errors()
    assert sys.excepthook is hook
    assert hook_result("raise ValueError('use 8')") == 2
    assert capsys.readouterr().err == "error: use 8\n"
    assert hook_result("{}['x']") is None
    assert capsys.readouterr().err == "traceback\n"


def test_an_interrupt_is_one_line_and_another_one_ends_at_once(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", lambda *error: sys.stderr.write("traceback\n"))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught, user_errors():
        raise KeyboardInterrupt
    try:
        sys.excepthook(KeyboardInterrupt, caught.value, caught.tb)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    said = "error: interrupted from the keyboard (SIGINT); what was saved before is complete\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("is_told", [True, False])
def test_before_the_ranks_have_met_the_first_of_a_host_speaks(is_told, monkeypatch, capsys):
    monkeypatch.setattr("mindspeed_ms.backend.comm.is_initialized", lambda: False)
    monkeypatch.setattr("mindspeed_ms.backend.spokesman.is_told_by_another", lambda: is_told)
    with pytest.raises(SystemExit), user_errors():
        raise ValueError("no")
    assert capsys.readouterr().err == ("" if is_told else "error: no\n")
