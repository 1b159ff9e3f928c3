# SPDX-License-Identifier: Apache-2.0
"""``pipeline`` as the guides call it."""

from __future__ import annotations

import pytest
import record_generation as record
from generation_models import RECORDED, generator, write_folder, write_tokenizer

import mindspeed_ms
from mindspeed_ms import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(write_folder("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def generate(folder):
    return pipeline(
        task="text_generation",
        model=generator(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        max_length=10,
    )


def _text(ids):
    return " ".join(f"w{token}" for token in ids)


PROMPTS = [_text(prompt) for prompt in record.PROMPTS]


def test_the_result_of_the_guide(generate):
    greedy = RECORDED["llama"]["tokens"]["greedy"]
    found = generate(PROMPTS[0], do_sample=False)
    assert found == [{"text_generation_text": [_text(greedy[0][:10])]}]
    both = generate(PROMPTS)
    assert both[0] == found[0] and both[1]["text_generation_text"] == [_text(greedy[1][:10])]
    assert generate(PROMPTS, batch_size=1) == both
    assert generate(iter(PROMPTS)) == both
    assert generate([]) == []
    new = generate(PROMPTS[0], return_full_text=False)[0]["text_generation_text"]
    assert new[0].strip() == _text(greedy[0][6:10])


def test_prompts_of_different_lengths_and_several_texts_of_each(generate):
    rows = [[token for token in row if token] for row in record.SHORTER]
    wanted = RECORDED["llama"]["tokens"]["padded greedy"]
    texts = [_text(row) for row in rows]
    found = generate(texts, max_length=None, max_new_tokens=4)
    for text, row, whole in zip(found, rows, wanted, strict=True):
        assert text["text_generation_text"] == [_text([*row, *whole[6:10]])]
    drawn = generate(texts, do_sample=True, num_return_sequences=3, max_new_tokens=4, seed=1)
    assert [len(set(one["text_generation_text"])) for one in drawn] == [3, 3, 3]
    alone = generate(texts[2], do_sample=True, num_return_sequences=3, max_new_tokens=4, seed=1)
    assert alone == drawn[2:]


def test_names_and_objects_give_the_same(folder, generate):
    wanted = generate(PROMPTS[0])
    assert pipeline("text_generation", generate.model, str(folder), max_length=10)(PROMPTS) == (
        generate(PROMPTS)
    )
    assert pipeline(task="text_generation", model=str(folder), max_length=10)(PROMPTS[0]) == wanted
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert pipeline("text_generation", model, max_length=10)(PROMPTS[0]) == wanted
    ids = AutoTokenizer.from_pretrained(folder)(PROMPTS[0])["input_ids"]
    assert (
        model.generate([ids], max_length=10).asnumpy().tolist()[0]
        == (RECORDED["llama"]["tokens"]["greedy"][0][:10])
    )


def test_a_saved_model_keeps_how_it_generates(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.update(max_new_tokens=3, eos_token_id=[7, 8])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config == model.generation_config
    assert again.generate(record.PROMPTS).shape == (2, 9)
    assert LlamaForCausalLM(LlamaConfig(eos_token_id=5)).generation_config.end_tokens == (5,)
    assert LlamaForCausalLM(LlamaConfig()).generation_config.end_tokens == (2,)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda made: pipeline("translation", "gpt2"), KeyError, "use text_generation"),
        (lambda made: pipeline("text_generation"), ValueError, "needs a model"),
        (lambda made: pipeline("text_generation", made.model), ValueError, "pass tokenizer="),
        (
            lambda made: pipeline("text_generation", made.model, made.tokenizer, max_lenght=3),
            TypeError,
            "did you mean 'max_length'",
        ),
        (lambda made: made("w5", max_lenght=3), TypeError, "did you mean 'max_length'"),
        (lambda made: made(5), TypeError, "a prompt is 5"),
        (lambda made: made([5]), TypeError, "a prompt is 5"),
        (lambda made: made(PROMPTS[0], max_length=6), ValueError, "max_length is 6"),
    ],
)
def test_refusals(generate, call, error, words):
    with pytest.raises(error, match=words):
        call(generate)


def test_the_names_are_at_the_root():
    for name in ("pipeline", "GenerationConfig", "TextStreamer", "TextIteratorStreamer"):
        assert name in mindspeed_ms.__all__ and getattr(mindspeed_ms, name)


CHAT = (
    "{% for one in messages %}{{ one['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}w90 {% endif %}"
)


def test_the_task_by_the_name_and_with_the_results_of_transformers(folder):
    """Forms of results as its ``TextGenerationPipeline`` documents them."""
    greedy = [_text(row[:10]) for row in RECORDED["llama"]["tokens"]["greedy"]]
    go_on = pipeline("text-generation", model=str(folder), max_length=10, do_sample=False)
    assert go_on(PROMPTS[0]) == [{"generated_text": greedy[0]}]
    assert go_on(PROMPTS[:1]) == [[{"generated_text": greedy[0]}]]
    assert go_on(PROMPTS) == [[{"generated_text": text}] for text in greedy]
    (new,) = go_on(PROMPTS[0], return_full_text=False)
    assert PROMPTS[0] + new["generated_text"] == greedy[0]
    several = go_on(PROMPTS[0], num_beams=2, num_return_sequences=2)
    assert len(several) == 2 and all(one["generated_text"].startswith("w") for one in several)
    with pytest.raises(TypeError, match="give a text, or messages of a chat"):
        go_on([3])


def test_a_chat_gets_its_answer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    model = AutoModelForCausalLM.from_pretrained(folder)
    go_on = pipeline("text-generation", model, tokenizer, max_new_tokens=3, do_sample=False)
    asked = [{"role": "system", "content": "w4"}, {"role": "user", "content": "w5 w6"}]
    (told,) = go_on(asked)
    *before, answer = told["generated_text"]
    whole = go_on("w4 w5 w6 w90")[0]["generated_text"]
    assert before == asked and answer["role"] == "assistant"
    assert whole == f"w4 w5 w6 w90{answer['content']}"
    assert go_on([asked, asked]) == [[told], [told]]
    begun = [*asked, {"role": "assistant", "content": "w90"}]
    (further,) = go_on(begun)
    assert further["generated_text"] == [
        *asked,
        {**begun[-1], "content": f"w90{answer['content']}"},
    ]
