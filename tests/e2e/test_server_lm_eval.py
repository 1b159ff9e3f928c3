# SPDX-License-Identifier: Apache-2.0
"""lm-eval finds of a server what it finds of transformers on the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lm_eval_words import figures, write_end_token
from serve_cases import served_folder, server

RECORDED = Path(__file__).parents[1] / "data/lm_eval.json"


@pytest.mark.slow
@pytest.mark.e2e
def test_figures_of_lm_eval_are_those_of_transformers(tmp_path):
    program = shutil.which("lm_eval")
    if program is None:
        pytest.skip('no lm_eval is installed (pip install "lm_eval[api]" transformers)')
    wanted = json.loads(RECORDED.read_text(encoding="utf-8"))
    folder = served_folder(tmp_path / "model")
    write_end_token(folder)
    with server(folder) as process:
        arguments = (
            f"model=model,base_url={process.address}/v1/completions,tokenizer={folder},"
            "num_concurrent=4,max_length=64"
        )
        found = figures([program], "local-completions", arguments, tmp_path / "work")
    assert found["results"] == wanted["results"]
    # A text begins with the space behind its prompt; lm-eval's own model decodes it by itself.
    assert _texts(found) == _texts(wanted)
    own, other = (_likelihoods(one) for one in (found, wanted))
    assert [flags for _, flags in own] == [flags for _, flags in other]
    np.testing.assert_allclose([x for x, _ in own], [x for x, _ in other], atol=2e-4)


def _likelihoods(found):
    """Logarithm and greediness of every choice."""
    pairs = [pair for row in found["samples"]["words_choice"] for pair in row]
    return [(float(value), str(greedy) == "True") for value, greedy in pairs]


def _texts(found):
    return [text.strip() for (text,) in found["samples"]["words_free"]]
