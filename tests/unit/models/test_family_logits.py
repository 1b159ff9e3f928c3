# SPDX-License-Identifier: Apache-2.0
"""A folder of every family computes what it computes in ``transformers``, and comes out again."""

import json
from pathlib import Path

import family_cases
import family_runs
import numpy as np
import pytest
from safetensors.numpy import load_file

from mindspeed_ms.models.families.registry import FAMILIES
from mindspeed_ms.training.conversion import ConvertOptions, convert

pytestmark = pytest.mark.usefixtures("single_rank")


NOT_IN_TRANSFORMERS = {"gpt_pangu"}


def test_every_family_has_a_case():
    recorded = {family_cases.recorded(case)["config"]["model_type"] for case in family_cases.CASES}
    assert recorded == {family.model_type for family in FAMILIES} - NOT_IN_TRANSFORMERS


@pytest.mark.parametrize("case", family_cases.CASES)
def test_logits_and_tokens_are_those_of_transformers(case, tmp_path):
    told = family_cases.write_folder(case, tmp_path / "theirs")
    found, tokens = family_runs.forward_worker(
        tmp_path / "theirs", {}, told["prompt"], len(told["greedy"])
    )
    expected = np.array(told["logits"])
    assert np.abs(found - expected).max() <= family_cases.BOUND
    assert np.abs(expected).max() > 0.5, "logits that tell something"
    assert tokens == told["greedy"]


@pytest.mark.parametrize("case", family_cases.CASES)
def test_tensors_and_keys_come_back(case, tmp_path):
    told = family_cases.write_folder(case, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", ConvertOptions(to="mindspeed_ms"))
    options = ConvertOptions(to="huggingface", model_type=told["config"]["model_type"])
    for source, name in (("theirs", "again"), ("ours", "back")):
        convert(tmp_path / source, tmp_path / name, options)
        tensors = load_file(tmp_path / name / "model.safetensors")
        before = load_file(tmp_path / "theirs" / "model.safetensors")
        assert tensors.keys() == before.keys()
        for key, array in before.items():
            assert np.array_equal(array.view(np.uint32), tensors[key].view(np.uint32)), key
    written = json.loads(Path(tmp_path / "again" / "config.json").read_text())
    kept = {key: written.get(key) for key in told["config"]}
    assert kept == told["config"]
