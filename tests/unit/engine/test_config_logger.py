# SPDX-License-Identifier: Apache-2.0
"""The whole configuration of a run, written at its start."""

import json

import pytest
from run_builder import open_run, trained


def test_the_configuration_is_written(tmp_path):
    folder = tmp_path / "new" / "configs"
    trained("--config-logger-dir", str(folder), "--train-iters", "1", "--weight-decay", "0.25")
    written = json.loads((folder / "config.json").read_text())
    assert written["optimizer_config"]["weight_decay"] == 0.25
    assert written["model_config"]["num_layers"] == 8


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--config-logger-dir .* cannot be written"):
        open_run("--config-logger-dir", str(tmp_path / "file"))
