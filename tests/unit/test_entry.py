"""A user's mistake ends in one line and a status, not in a traceback."""

import pytest

from mindspeed_ms.training.entry import USER_ERROR_STATUS, user_errors


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, FileNotFoundError, NotImplementedError])
def test_input_errors_become_one_line(kind, capsys):
    with pytest.raises(SystemExit) as end, user_errors():
        raise kind("hidden_size is 7;\n   use 8")
    assert end.value.code == USER_ERROR_STATUS != 0
    assert capsys.readouterr().err == "error: hidden_size is 7; use 8\n"


def test_other_errors_pass():
    with pytest.raises(KeyError), user_errors():
        raise KeyError("a mistake of ours")
