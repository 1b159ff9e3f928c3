# SPDX-License-Identifier: Apache-2.0
"""A key that a ``config.json`` leaves out has the value of the class in ``transformers``."""

import json
from pathlib import Path

import pytest

from mindspeed_ms.models.families.registry import BY_MODEL_TYPE

DATA = Path(__file__).parents[2] / "data" / "family_defaults.json"
DEFAULTS = json.loads(DATA.read_text(encoding="utf-8"))
SIZES = {"head_dim": 16, "num_experts_per_tok": 2, "n_routed_experts": 8}
"""Of classes whose own defaults are no model."""
ELSEWHERE = {"model_type", "vocab_size", "num_nextn_predict_layers", *SIZES}
"""Layers for further tokens are there if their tensors are."""


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_a_missing_key_has_the_value_of_the_class(model_type):
    family, theirs = BY_MODEL_TYPE[model_type], dict(DEFAULTS[model_type])
    for key in SIZES.keys() & theirs.keys() | ({"head_dim"} if model_type == "glm4_moe" else set()):
        theirs[key] = theirs.get(key) or SIZES[key]
    whole = family.sections(theirs)
    wrong = []
    for key in theirs.keys() - ELSEWHERE:
        try:
            found = family.sections({name: theirs[name] for name in theirs if name != key})
        except ValueError as error:
            assert "every model of this type needs it" in str(error), key
            continue
        if found != whole:
            wrong.append(key)
    assert wrong == []
