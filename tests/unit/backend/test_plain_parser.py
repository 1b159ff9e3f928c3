# SPDX-License-Identifier: Apache-2.0
"""Two dashes are no value of a flag, at any command that there is."""

import pytest

from mindspeed_ms.backend import launcher
from mindspeed_ms.backend.plain_parser import PlainParser
from mindspeed_ms.backend.torchrun import msrun, run
from mindspeed_ms.command import evaluate, plot
from mindspeed_ms.training.arguments import parse_args

COMMANDS = {
    "train": (parse_args, ["--num-layers=--"]),
    "evaluate": (evaluate.main, ["--load", "x", "--ckpt-step=--"]),
    "plot": (plot.main, ["x", "--y=--"]),
    "torchrun": (run.main, ["--nproc-per-node=--", "x.py"]),
    "msrun": (msrun.main, ["--worker_num=--", "x.py"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_two_dashes_are_no_value(name, capsys, monkeypatch):
    main, words = COMMANDS[name]
    monkeypatch.setattr("sys.argv", ["x", *words])
    try:
        status = main(words)
    except SystemExit as ended:
        status = ended.code
    assert status not in (0, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert "-- is no value; give one" in line


def test_dashes_that_end_flags_still_do():
    parser = PlainParser()
    parser.add_argument("--a", nargs="*")
    parser.add_argument("b")
    assert vars(parser.parse_args(["--a", "1", "--", "--b"])) == {"a": ["1"], "b": "--b"}
    assert launcher.PlainParser is PlainParser
