# SPDX-License-Identifier: Apache-2.0
"""Words and files of the high-level front doors that are nonsense: one line, and status 2."""

import pytest

from mindspeed_ms.backend import rank_table
from mindspeed_ms.toolkit import run_mindformer, yaml_config
from mindspeed_ms.toolkit.data.sources import Source
from mindspeed_ms.toolkit.launch import hccl_tools, merge_hccl
from mindspeed_ms.toolkit.mapping.parallel import World
from mindspeed_ms.toolkit.mapping.tree import read_task
from mindspeed_ms.toolkit.trainer.callbacks import TrainerState

DEEP = "[" * 100_000
NO_NUMBERS = ["10_00", "٣", "nan", "inf", "1e400", "0x10", "", "2**70"]


@pytest.mark.parametrize("text", [*NO_NUMBERS, "1.5", "99999999999999999999"])
def test_a_whole_number_is_written_in_plain_digits(text):
    with pytest.raises(ValueError, match="must be a whole number"):
        yaml_config.cast(text, 5)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_a_number_is_written_in_plain_digits(text):
    with pytest.raises(ValueError, match="must be a number in plain digits"):
        yaml_config.cast(text, 0.5)


@pytest.mark.parametrize("flag", ["--epochs", "--seed", "--batch_size"])
@pytest.mark.parametrize("text", NO_NUMBERS)
def test_flags_of_run_mindformer_take_plain_numbers(flag, text, capsys):
    with pytest.raises(SystemExit) as ended:
        run_mindformer.parser().parse_args(["--config", "f.yaml", flag, text])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument {flag}: must be a number, not" in line


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"runner_config": {"epochs": float("inf")}}, "epochs is inf, but must be a number above"),
        ({"context": {"mode": "fast"}}, "mode is 'fast', but must be 0 (graph) or 1 (dynamic"),
        ({"context": {"mode": -1}}, "mode is -1, but must be 0 (graph) or 1 (dynamic graph)"),
        ({"context": {"device_target": 0}}, "device_target is 0, but must be a text, Ascend or"),
        ({"context": {"device_target": []}}, "device_target is [], but must be a text"),
    ],
)
def test_values_of_a_file_that_are_nonsense(tree, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the text is compared below)
        read_task(tree, World(1, 1))
    assert message in str(caught.value)


def test_brackets_without_end_are_one_line(tmp_path, capsys):
    table, state, lines = tmp_path / "t.json", tmp_path / "s.json", tmp_path / "l.jsonl"
    for path in (table, state, lines):
        path.write_text(DEEP)
    with pytest.raises(SystemExit) as ended:
        merge_hccl.main([str(table)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not JSON (maximum recursion depth" in line
    for read in (lambda: TrainerState.load_from_json(state), lambda: Source.of(lines, "data")):
        with pytest.raises(ValueError, match="is not JSON"):
            read()


@pytest.mark.parametrize("name", ["999.1.1.1", "zz zz", "", "1.2.3", "::g", "a/b"])
def test_what_is_no_address(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert not rank_table.is_address(name)
    with pytest.raises(SystemExit) as ended:
        hccl_tools.main(["--server_ip", name])
    assert ended.value.code == 2 and not list(tmp_path.iterdir())
    assert "give the address of this host" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["10.0.0.1", "::1", "node-1.lan", "host_2"])
def test_what_is_an_address(name):
    assert rank_table.is_address(name)
