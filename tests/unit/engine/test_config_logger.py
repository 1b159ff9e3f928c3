# SPDX-License-Identifier: Apache-2.0
"""The whole configuration of a run, written at its start."""

import json

import pytest
from run_builder import open_run, trained

from mindspeed_ms.core.parameter import named_parameters


def test_the_configuration_is_written(tmp_path):
    folder = tmp_path / "new" / "configs"
    trained("--config-logger-dir", str(folder), "--train-iters", "1", "--weight-decay", "0.25")
    written = json.loads((folder / "config.json").read_text())
    assert written["optimizer_config"]["weight_decay"] == 0.25
    assert written["model_config"]["num_layers"] == 8


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--config-logger-dir: .* cannot be written"):
        open_run("--config-logger-dir", str(tmp_path / "file"))


def test_the_group_of_each_parameter_is_written(tmp_path):
    """Megatron's groups: with decay, without, and those of a rate of their own behind each."""
    path = tmp_path / "new" / "groups.json"
    words = ("--decoupled-lr", "1e-3", "--dump-param-to-param-group-map", str(path))
    run, _ = open_run(*words, style="llama")
    with run:
        sizes = {name: param.ndim for name, param in named_parameters(run.model[0].module)}
    numbers = json.loads(path.read_text())
    assert numbers.keys() == sizes.keys()
    for name, number in numbers.items():
        decoupled = "word_embeddings" in name or "output_layer" in name
        assert number == (1 if decoupled else 0 if sizes[name] > 1 else 2), name
