# SPDX-License-Identifier: Apache-2.0
"""``generate`` with drafts, whoever makes them: the same texts by fewer steps."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import LLAMA, NO_BIAS, SIZES

from mindspeed_ms.backend import memory
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.inference.drafts import continuation
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


DRAFTS = ("use_mtp", "prompt_lookup_num_tokens", "assistant_model", "poor assistant")


def _built(**sizes):
    parallel_state.destroy_model_parallel()
    model = {**SIZES, **LLAMA, **NO_BIAS, "seq_length": 64, **sizes}
    config = assemble({"model_config": model, "training_config": {"seed": 7}})
    fill_run_state(config)

    def provide(pre_process, post_process):
        return GPTModel(config.model_config, pre_process=pre_process, post_process=post_process)

    return TextGenerator(build_model_chunks(provide, config), config)


@pytest.fixture(scope="module")
def generator():
    return _built(mtp_num_layers=2)


@pytest.fixture(scope="module")
def drafting(generator):
    """Who drafts -> the options for it."""
    few = _built(num_layers=1, position_embedding_type="absolute", seq_length=12)
    return {
        "use_mtp": {"use_mtp": True},
        "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
        "assistant_model": {"assistant_model": generator, "num_assistant_tokens": 3},
        "poor assistant": {"assistant_model": few, "assistant_confidence_threshold": 0.1},
    }


@pytest.mark.parametrize("who", DRAFTS)
@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_tokens_are_those_without_drafts(generator, drafting, who, name):
    options = {"max_new_tokens": 14, "return_dict_in_generate": True, **OPTIONS[name]}
    plain = generator.generate(PROMPTS, **options)
    found = generator.generate(PROMPTS, **drafting[who], **options)
    np.testing.assert_array_equal(
        memory.as_numpy(found.sequences), memory.as_numpy(plain.sequences)
    )
    if name != "no padding":
        logprobs = memory.as_numpy(plain.logprobs)
        np.testing.assert_allclose(memory.as_numpy(found.logprobs), logprobs, atol=1e-5)
    assert found.num_drafted > 0 and plain.num_drafted is None


@pytest.mark.parametrize("who", DRAFTS[:3])
def test_accepted_drafts_save_steps(generator, drafting, monkeypatch, who):
    """Every accepted token is one step of the whole model less."""
    engines = []
    real = InferenceEngine.run
    monkeypatch.setattr(
        InferenceEngine,
        "run",
        lambda engine, context: engines.append(engine) or real(engine, context),
    )
    options = {"max_new_tokens": 30, "return_dict_in_generate": True, **drafting[who]}
    scores = {"output_scores": True, "output_logits": True}
    found = generator.generate([PROMPTS[0]], **options, **scores)
    assert found.num_accepted > 0, "an untrained model repeats itself"
    assert engines.count(engines[0]) == 30 - found.num_accepted
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


def test_an_assistant_that_knows_the_model_is_always_right(generator):
    options = {"assistant_model": generator, "assistant_confidence_threshold": 0.0}
    found = generator.generate(
        PROMPTS, num_assistant_tokens=4, max_new_tokens=11, return_dict_in_generate=True, **options
    )
    assert found.num_accepted == found.num_drafted == 3 * (11 - 3)
    drawn = {"do_sample": True, "seed": 1, "temperature": 0.9, "top_p": 0.8}
    found = generator.generate(
        PROMPTS,
        num_assistant_tokens=4,
        max_new_tokens=11,
        return_dict_in_generate=True,
        **options,
        **drawn,
    )
    assert found.num_accepted == found.num_drafted


def test_a_draft_ends_with_an_unlikely_token(generator):
    counts = [
        generator.generate(
            [PROMPTS[0]],
            assistant_model=generator,
            assistant_confidence_threshold=least,
            max_new_tokens=10,
            return_dict_in_generate=True,
        ).num_drafted
        for least in (0.0, 1.0)
    ]
    assert counts == [8, 4]


def test_an_assistant_has_the_tokens_of_the_model(generator):
    with pytest.raises(ValueError, match="has 40 tokens, but the model 32"):
        generator.generate(PROMPTS, assistant_model=_built(vocab_size=40))


@pytest.mark.parametrize(
    ("ids", "longest", "wanted"),
    [
        ([1, 2, 3, 9, 1, 2], 2, [3, 9, 1, 2]),
        ([1, 2, 3, 5, 2, 4, 5, 2], 3, [4, 5, 2]),
        ([7, 2, 3, 5, 2], 2, [3, 5, 2]),
        ([4, 4], 2, [4]),
        ([1, 2, 3], 2, []),
        ([6], 2, []),
    ],
)
def test_drafts_of_the_prompt_are_what_followed_before(ids, longest, wanted):
    assert continuation(np.array(ids), longest).tolist() == wanted
