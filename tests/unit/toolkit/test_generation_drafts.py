# SPDX-License-Identifier: Apache-2.0
"""``generate(use_mtp=True)``: the same texts by fewer steps."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import LLAMA, NO_BIAS, SIZES

from mindspeed_ms.backend import memory
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.engine.model_chunks import build_model_chunks
from mindspeed_ms.engine.start import fill_run_state
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.toolkit.generation.mixin import TextGenerator
from mindspeed_ms.toolkit.generation.streamers import TextStreamer

pytestmark = pytest.mark.usefixtures("single_rank")

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]
OPTIONS = {
    "greedy": {},
    "drawn": {"do_sample": True, "seed": 3, "temperature": 0.7},
    "copies": {"do_sample": True, "seed": 3, "num_return_sequences": 2},
    "processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 9},
    "ends": {"eos_token_id": [5, 6, 7, 8, 9], "pad_token_id": 0, "repetition_penalty": 1.5},
    "no padding": {"stopping_criteria": [lambda ids, scores: ids[:, -1] % 5 == 0]},
    "allowed": {"prefix_allowed_tokens_fn": lambda row, ids: range(row, 32, 3)},
}


@pytest.fixture(scope="module")
def generator():
    parallel_state.destroy_model_parallel()
    model = {**SIZES, **LLAMA, **NO_BIAS, "seq_length": 64, "mtp_num_layers": 2}
    config = assemble({"model_config": model, "training_config": {"seed": 7}})
    fill_run_state(config)

    def provide(pre_process, post_process):
        return GPTModel(config.model_config, pre_process=pre_process, post_process=post_process)

    return TextGenerator(build_model_chunks(provide, config), config)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_tokens_are_those_without_drafts(generator, name):
    options = {"max_new_tokens": 14, "return_dict_in_generate": True, **OPTIONS[name]}
    plain = generator.generate(PROMPTS, **options)
    found = generator.generate(PROMPTS, use_mtp=True, **options)
    np.testing.assert_array_equal(
        memory.as_numpy(found.sequences), memory.as_numpy(plain.sequences)
    )
    if name != "no padding":
        logprobs = memory.as_numpy(plain.logprobs)
        np.testing.assert_allclose(memory.as_numpy(found.logprobs), logprobs, atol=1e-5)
    assert found.num_drafted > 0 and plain.num_drafted is None


def test_accepted_drafts_save_steps(generator, monkeypatch):
    """Every accepted token is one step of the whole model less."""
    steps = []
    real = InferenceEngine.run
    monkeypatch.setattr(
        InferenceEngine, "run", lambda engine, context: steps.append(1) or real(engine, context)
    )
    options = {"max_new_tokens": 30, "use_mtp": True, "return_dict_in_generate": True}
    scores = {"output_scores": True, "output_logits": True}
    found = generator.generate([PROMPTS[0]], **options, **scores)
    assert found.num_accepted > 0, "an untrained model repeats itself"
    assert len(steps) == 30 - found.num_accepted
    assert len(found.scores) == len(found.logits) == 30


def test_a_streamer_gets_every_token(generator, capsys):
    class Letters:
        @staticmethod
        def decode(ids):
            return "".join(chr(97 + i % 26) for i in ids)

    options = {"max_new_tokens": 9, "use_mtp": True, "streamer": TextStreamer(Letters())}
    found = memory.as_numpy(generator.generate([PROMPTS[0]], **options))
    assert capsys.readouterr().out == Letters.decode(found[0]) + "\n"
    with pytest.raises(ValueError, match="are for one"):
        generator.generate(PROMPTS, **options)
    with pytest.raises(ValueError, match="num_beams=1, use_cache=True"):
        generator.generate(PROMPTS, use_mtp=True, num_beams=2)
