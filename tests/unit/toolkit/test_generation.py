# SPDX-License-Identifier: Apache-2.0
"""``generate`` against what ``transformers`` has generated; see tests/record_generation.py."""

from __future__ import annotations

import numpy as np
import pytest
import record_generation as record
from generation_models import RECORDED, generator, write_folder

from mindspeed_ms.backend import memory
from mindspeed_ms.core.inference import logits_processors as lp
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.generation.streamers import TextIteratorStreamer, TextStreamer

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model type -> its generator, built once."""
    made = {}

    def of(model_type):
        if model_type not in made:
            folder = write_folder(model_type, tmp_path_factory.mktemp(model_type))
            made[model_type] = generator(folder)
        return made[model_type]

    return of


def _options(name):
    return {**record.PLAIN, **record.OPTIONS[name]}


def _ids(tensor):
    return memory.as_numpy(tensor).tolist()


@pytest.mark.parametrize("model_type", list(RECORDED))
@pytest.mark.parametrize("name", list(record.OPTIONS))
def test_the_tokens_are_those_of_transformers(models, model_type, name):
    found = models(model_type).generate(record.PROMPTS, **_options(name))
    assert _ids(found) == RECORDED[model_type]["tokens"][name]


@pytest.mark.parametrize("model_type", list(RECORDED))
@pytest.mark.parametrize("name", list(record.PADDED))
@pytest.mark.parametrize("use_cache", [True, False])
def test_padded_prompts(models, model_type, name, use_cache):
    options = {**record.PLAIN, **record.PADDED[name], "use_cache": use_cache}
    found = models(model_type).generate(record.SHORTER, attention_mask=record.MASK, **options)
    assert _ids(found) == RECORDED[model_type]["tokens"][f"padded {name}"]


def test_padding_is_found_and_may_be_on_the_right(models):
    model, options = models("llama"), record.PLAIN
    wanted = RECORDED["llama"]["tokens"]["padded greedy"]
    assert _ids(model.generate(record.SHORTER, **options)) == wanted
    rows = [[token for token in row if token] for row in record.SHORTER]
    assert _ids(model.generate(rows, **options)) == wanted
    right = np.array([row + [record.PAD] * (6 - len(row)) for row in rows])
    found = _ids(model.generate(memory.from_numpy(right), **options))
    assert [row[6:] for row in found] == [row[6:] for row in wanted]
    alone = _ids(model.generate(np.array(rows[0]), **options))
    assert alone[0][4:] == wanted[0][6 : 6 + len(alone[0]) - 4]


@pytest.mark.parametrize("model_type", list(RECORDED))
@pytest.mark.parametrize("name", ["repetition", "beams, several ends"])
def test_scores_are_those_of_transformers(models, model_type, name):
    wanted, model = RECORDED[model_type]["scored"][name], models(model_type)
    found = model.generate(
        record.PROMPTS,
        **_options(name),
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    beams = found.beam_indices
    scores = model.compute_transition_scores(found.sequences, found["scores"], beams)
    np.testing.assert_allclose(scores, wanted["transition"], atol=2e-5)
    if beams is not None:
        assert _ids(beams) == wanted["beam_indices"]
        np.testing.assert_allclose(
            memory.as_numpy(found.sequences_scores), wanted["sequences_scores"], atol=1e-5
        )
    plain = model.compute_transition_scores(found.sequences, found.logits, beams, True)
    logprobs = memory.as_numpy(found.logprobs)
    ended = logprobs == 0.0
    np.testing.assert_allclose(logprobs[~ended], plain[~ended], atol=1e-5)
    assert ended.mean() < 0.4
    assert "logits" in found and found.keys()[0] == "sequences"


@pytest.mark.parametrize("name", list(record.PROCESSORS))
def test_a_processor_does_what_its_class_does(name):
    ids, scores = record.processor_inputs()
    if name == "invalid":
        scores[0, :3] = (np.nan, np.inf, -np.inf)
    before = scores.copy()
    with np.load(record.FOLDER / "processors.npz") as archive:
        wanted = archive[name]
    found = PROCESSORS[name](ids, scores)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted))
    kept = np.isfinite(wanted)
    np.testing.assert_allclose(found[kept], wanted[kept], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(scores, before)


PROCESSORS = {
    "repetition": lp.repetition_penalty(1.3),
    "n-grams": lp.no_repeat_ngram(2),
    "bias": lp.sequence_bias({(3,): 1.5, (4, 5): -2.0, (1, 2, 6): 1.0}),
    "bad words": lp.no_bad_words([[3], [4, 5], [1, 2, 6], [7]], [7]),
    "least": lp.min_length(30, [7, 8]),
    "least reached": lp.min_length(5, [7, 8]),
    "forced": lp.forced_tokens([7], 12),
    "not forced": lp.forced_tokens([7], 13),
    "invalid": lp.remove_invalid_values,
    "decay": lp.exponential_decay(6, 1.3, [7, 8]),
    "suppressed": lp.suppress_tokens([1, 2, 9]),
    "suppressed first": lp.suppress_tokens([1, 2, 9], 12),
    "temperature": lp.temperature(0.7),
    "top_k": lp.top_k(5),
    "top_p": lp.top_p(0.8),
    "top_p of two": lp.top_p(0.05, 2),
    "min_p": lp.min_p(0.2),
    "typical_p": lp.typical_p(0.6),
    "epsilon": lp.epsilon_cutoff(0.05),
    "eta": lp.eta_cutoff(0.1),
    "top_h": lp.top_h(0.5),
    "renormalized": lp.renormalize,
}

DRAWN = {"do_sample": True, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}


def test_drawn_tokens_depend_on_the_seed_and_the_prompt_alone(models):
    model = models("llama")
    first, second = record.PROMPTS
    together = _ids(model.generate([first, second], seed=3, **DRAWN))
    assert _ids(model.generate([second, first], seed=3, **DRAWN)) == together[::-1]
    assert _ids(model.generate([second], seed=3, **DRAWN)) == together[1:]
    assert _ids(model.generate([first, second], seed=4, **DRAWN)) != together
    copies = _ids(model.generate([first], seed=3, num_return_sequences=3, **DRAWN))
    assert copies[0] == together[0] and len(set(map(tuple, copies))) == 3
    assert _ids(model.generate([first] * 3, seed=3, **DRAWN)) == copies
    assert _ids(model.generate([first], **DRAWN)) != _ids(model.generate([first], **DRAWN))


def test_drawn_tokens_have_the_probabilities_of_the_scores(models):
    model, options = models("llama"), {"temperature": 1.3, "top_k": 12, "top_p": 0.95}
    task = {**DRAWN, **options, "max_new_tokens": 1}
    one = model.generate(
        [record.PROMPTS[0]], seed=1, **task, return_dict_in_generate=True, output_scores=True
    )
    wanted = lp.softmax(memory.as_numpy(one.scores[0]))[0]
    found = memory.as_numpy(model.generate([record.PROMPTS[0]] * 4000, seed=1, **task))[:, -1]
    shares = np.bincount(found, minlength=len(wanted)) / len(found)
    assert np.abs(shares - wanted).sum() / 2 < 0.03
    assert (wanted > 0).sum() > 3


def test_beams_that_are_drawn(models):
    options = {**DRAWN, "num_beams": 3, "num_return_sequences": 3}
    found = _ids(models("llama").generate([record.PROMPTS[0]], seed=5, **options))
    assert _ids(models("llama").generate([record.PROMPTS[0]], seed=5, **options)) == found
    assert len(set(map(tuple, found))) == 3
    assert _ids(models("llama").generate([record.PROMPTS[0]], seed=6, **options)) != found


class Letters:
    """A tokenizer: every token is a letter, tokens above 25 two of them."""

    @staticmethod
    def decode(ids):
        return "".join(chr(97 + i) if i < 26 else chr(97 + i % 26) + chr(97 + i // 26) for i in ids)


def test_a_stop_string_ends_a_row(models):
    model = models("llama")
    greedy = RECORDED["llama"]["tokens"]["no end"]
    text = Letters.decode(greedy[0][6:])
    stop = text[5:8]
    found = _ids(
        model.generate(
            [record.PROMPTS[0]], max_new_tokens=20, stop_strings=stop, tokenizer=Letters()
        )
    )
    ended = Letters.decode(found[0][6:])
    assert stop in ended and stop not in Letters.decode(found[0][6:-1])
    assert found[0] == greedy[0][: len(found[0])]
    with pytest.raises(ValueError, match="no tokenizer to find them"):
        model.generate([record.PROMPTS[0]], stop_strings=["a"])


def test_functions_of_the_caller(models):
    model = models("llama")
    found = model.generate(
        record.PROMPTS,
        max_new_tokens=9,
        logits_processor=[lambda ids, scores: np.where(np.arange(96) == 5, 99, scores)],
        stopping_criteria=[lambda ids, scores: ids.shape[1] >= 9],
    )
    assert _ids(found) == [[*row, 5, 5, 5] for row in record.PROMPTS]
    found = model.generate(
        record.PROMPTS, max_new_tokens=2, prefix_allowed_tokens_fn=lambda row, ids: [20 + row]
    )
    assert [row[6:] for row in _ids(found)] == [[20, 20], [21, 21]]


def test_a_streamer_shows_the_text_and_beams_have_none(models, capsys):
    options = {"max_new_tokens": 20}
    model, prompt = models("llama"), record.PROMPTS[0]
    text = Letters.decode(RECORDED["llama"]["tokens"]["no end"][0])
    found = model.generate([prompt], streamer=TextStreamer(Letters()), **options)
    assert capsys.readouterr().out == text + "\n" == Letters.decode(_ids(found)[0]) + "\n"
    pieces = TextIteratorStreamer(Letters(), skip_prompt=True)
    model.generate([prompt], streamer=pieces, **options)
    assert "".join(pieces) == text.removeprefix(Letters.decode(prompt))
    with pytest.raises(ValueError, match="beams do not know"):
        model.generate([prompt], streamer=pieces, num_beams=2)
    with pytest.raises(ValueError, match="shows one text"):
        model.generate(record.PROMPTS, streamer=pieces)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_new_token": 3}, TypeError, "did you mean 'max_new_tokens'"),
        ({"tempratur": 3}, TypeError, "did you mean 'temperature'"),
        ({"max_length": 6}, ValueError, "the prompt has 6 tokens, but max_length is 6"),
        ({"num_return_sequences": 2}, ValueError, "a greedy choice gives one"),
        ({"num_beams": 2, "num_return_sequences": 3}, ValueError, "more than num_beams"),
        ({"guidance_scale": 2.0}, ValueError, "no second, unguided run"),
        ({"num_beams": 0}, ValueError, "a whole number from 1 up"),
        ({"temperature": 0.0, "do_sample": True}, ValueError, "temperature is 0.0"),
        ({"top_k": -1}, ValueError, "a whole number from 0 up"),
        ({"early_stopping": "soon"}, ValueError, "True, False or 'never'"),
        ({"attention_mask": [[1]]}, ValueError, "attention_mask has shape"),
        ({"attention_mask": [[0] * 6] * 2}, ValueError, "prompt 0 has no tokens"),
        ({"assistant_model": 1}, TypeError, r"an object with inference_engine\(\) and active"),
        ({"use_mtp": True, "prompt_lookup_num_tokens": 2}, ValueError, "one of them drafts"),
        ({"assistant_ensemble_weight": 0.5}, ValueError, "drafts change no text"),
        ({"encoder_repetition_penalty": 0.0}, ValueError, "must be above 0"),
        (
            {"forced_eos_token_id": [3, 4], "suppress_tokens": [4, 5, 3]},
            ValueError,
            "suppress_tokens rules it out",
        ),
        ({"suppress_tokens": list(range(96)), "do_sample": True}, ValueError, "rule every token"),
    ],
)
def test_refusals(models, options, error, words):
    with pytest.raises(error, match=words):
        models("llama").generate(record.PROMPTS, **options)


def test_a_model_with_a_table_of_positions_says_both_numbers(models):
    with pytest.raises(ValueError, match="6 tokens and 60 new ones need 65 positions.* has 64"):
        models("gpt2").generate(record.PROMPTS, max_new_tokens=60)
    assert len(_ids(models("gpt2").generate(record.PROMPTS, max_new_tokens=59))[0]) == 65


def test_options_come_from_the_call_then_the_object_then_the_model(models, monkeypatch, tmp_path):
    model, prompt = models("llama"), [record.PROMPTS[0]]
    assert len(_ids(model.generate(prompt))[0]) == 6 + 20
    monkeypatch.setattr(model, "generation_config", {"max_new_tokens": 3, "family": "llama"})
    assert len(_ids(model.generate(prompt))[0]) == 9
    four = GenerationConfig(max_new_tokens=4)
    assert len(_ids(model.generate(prompt, generation_config=four))[0]) == 10
    config = GenerationConfig(max_new_tokens=4, eos_token_id=[1, 2])
    assert len(_ids(model.generate(prompt, generation_config=config, max_new_tokens=5))[0]) == 11
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == config and config.end_tokens == (1, 2)
    assert GenerationConfig(max_decode_length=9).max_length == 9
    with pytest.raises(TypeError, match="did you mean 'top_k'"):
        config.top_kk = 3
    with pytest.raises(OSError, match="nothing is downloaded"):
        GenerationConfig.from_pretrained(tmp_path / "none")


def test_none_of_the_call_undoes_what_the_model_says(models, monkeypatch):
    model = models("llama")
    plain = _ids(model.generate(record.PROMPTS, max_new_tokens=12))
    own = {"eos_token_id": 33, "pad_token_id": 5, "repetition_penalty": 1.6, "max_new_tokens": 3}
    monkeypatch.setattr(model, "generation_config", own)
    nothing = dict.fromkeys(own)
    assert _ids(model.generate(record.PROMPTS, **{**nothing, "max_new_tokens": 12})) == plain
    assert len(_ids(model.generate(record.PROMPTS, **nothing))[0]) == 6 + 20
    drawn = {"do_sample": True, "return_dict_in_generate": True, "output_scores": True}
    narrow = model.generate(record.PROMPTS, **drawn, max_new_tokens=1).scores[0]
    wide = model.generate(record.PROMPTS, **drawn, max_new_tokens=1, top_k=None).scores[0]
    counts = [int(np.isfinite(memory.as_numpy(scores)).sum()) for scores in (narrow, wide)]
    assert counts == [2 * 50, 2 * 96]


def test_min_new_tokens_comes_before_min_length(models):
    ends = list(range(7, 60))
    options = {"eos_token_id": ends, "pad_token_id": 0, "max_new_tokens": 16}
    model = models("llama")
    wanted = _ids(model.generate(record.PROMPTS, min_new_tokens=2, **options))
    both = model.generate(record.PROMPTS, min_new_tokens=2, min_length=20, **options)
    assert _ids(both) == wanted
    assert len(_ids(model.generate(record.PROMPTS, min_length=20, **options))[0]) >= 20


def test_positions_are_those_of_the_mask_or_refused(models):
    model, mask = models("llama"), np.array(record.MASK)
    plain = {**record.PLAIN, "attention_mask": mask}
    wanted = _ids(model.generate(record.SHORTER, **plain))
    types, places = np.zeros_like(mask), np.maximum(mask.cumsum(axis=1) - 1, 0)
    found = model.generate(record.SHORTER, position_ids=places, token_type_ids=types, **plain)
    assert _ids(found) == wanted
    everywhere = np.arange(6)[None]
    model.generate(record.PROMPTS, position_ids=memory.from_numpy(everywhere), max_new_tokens=1)
    for wrong in (everywhere, places[:2], places + 1, places[:, :3]):
        with pytest.raises(ValueError, match="position_ids are not the places"):
            model.generate(record.SHORTER, position_ids=wrong, **plain)
    with pytest.raises(ValueError, match="token_type_ids are not all 0"):
        model.generate(record.SHORTER, token_type_ids=types + 1, **plain)


def test_an_end_token_alone_is_no_bad_word(models):
    wanted = _ids(models("llama").generate(record.PROMPTS, **record.PLAIN))
    options = {**record.PLAIN, "bad_words_ids": [[record.END]]}
    assert _ids(models("llama").generate(record.PROMPTS, **options)) == wanted


def test_places_of_no_sequence_are_the_last_of_equal_beams(models):
    options = {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": 7, "pad_token_id": 3}
    found = models("llama").generate(
        record.PROMPTS, max_new_tokens=1, forced_eos_token_id=7, **options
    )
    assert [row[6:] for row in _ids(found)] == [[7]] * 6
