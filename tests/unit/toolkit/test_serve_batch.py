# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: every answer is the one that a request gets alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from generation_models import generator, write_folder
from serve_cases import Collected, Words, alone, requests

from mindspeed_ms.core.inference.logits_processors import log_softmax
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.serve.batch import ContinuousBatch, Failed, PromptScores, Request
from mindspeed_ms.toolkit.serve.growing_text import GrowingText
from mindspeed_ms.toolkit.serve.loop import Desk, FullError, StoppingError, run
from mindspeed_ms.toolkit.serve.metrics import Metrics
from mindspeed_ms.toolkit.serve.rules import LineEnds, NeverAfter, Penalties

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return generator(write_folder("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture
def engine(model):
    with model.inference_engine(4) as made:
        yield made


def _plain(prompt, num_new, **more):
    config = GenerationConfig(eos_token_id=7).filled()
    config.max_length = len(prompt) + num_new
    return Request(number=0, prompt=prompt, config=config, **more)


def test_requests_that_come_and_go_get_the_answers_they_get_alone(model, engine):
    batch, found = ContinuousBatch(engine, Words(), max_rows=7, max_tokens=12), Collected()
    random = np.random.default_rng(0)
    waiting, cancelled = requests(), set()
    random.shuffle(waiting)
    everyone, most = list(waiting), 0
    while waiting or batch.has_work:
        for request in waiting[: random.integers(0, 4)]:
            batch.add(waiting.pop(0))
            if random.random() < 0.2:
                cancelled.add(request.number)
        for number in [one for one in cancelled if random.random() < 0.3]:
            batch.cancel(number)
        for event in batch.step():
            found.take(event)
        most = max(most, batch.num_running)
    assert most == 7 and len(cancelled) > 2
    assert engine.cache.num_free == engine.cache.num_slots == 8
    for request in everyone:
        if request.number not in cancelled:
            assert found.rows(request.number) == alone(model, request), request


def test_an_answer_is_the_same_beside_others_to_the_last_bit_of_its_logits(engine):
    slots, _ = engine.add([[5, 6, 9]])
    wanted = engine.step(slots, [3]).copy()
    slots = np.concatenate([engine.add([[token, 8]])[0] for token in range(3)])
    more, _ = engine.add([[5, 6, 9]])
    found = engine.step(np.concatenate([slots, more]), [4, 4, 4, 3])
    assert (found[3] == wanted[0]).all()


def test_a_cancelled_request_leaves_its_slots_at_once(engine):
    batch = ContinuousBatch(engine, Words(), max_rows=2)
    batch.add(_plain((5, 6), 30))
    batch.add(replace(_plain((5, 6), 30), number=1))
    batch.add(replace(_plain((5, 6), 30), number=2))
    batch.step()
    assert (batch.num_running, batch.num_waiting) == (2, 1)
    batch.cancel(0)
    assert engine.cache.num_free == engine.cache.num_slots - 1
    batch.cancel(2)
    assert (batch.num_running, batch.num_waiting) == (1, 0)
    batch.cancel(1)
    assert not batch.has_work and engine.cache.num_free == engine.cache.num_slots


def test_one_prompt_joins_at_a_time_where_they_are_long(engine):
    batch = ContinuousBatch(engine, Words(), max_tokens=5)
    for number in range(3):
        batch.add(replace(_plain((5, 6, 8), 30), number=number))
    batch.step()
    assert (batch.num_running, batch.num_waiting) == (1, 2)


def test_scores_of_a_prompt_are_the_models(engine):
    prompt = (5, 6, 9, 3)
    batch, found = ContinuousBatch(engine, Words()), Collected()
    batch.add(_plain(prompt, 0, num_top=2, scores_prompt=True))
    found.drain(batch)
    (scores,) = found.others
    assert isinstance(scores, PromptScores) and found.ended == {(0, 0): "length"}
    wanted = []
    for count in (1, 2, 3):
        slots, logits = engine.add([prompt[:count]])
        wanted.append(log_softmax(logits)[0])
        engine.free(slots)
    chosen = [own[token] for own, token in zip(wanted, prompt[1:], strict=True)]
    np.testing.assert_allclose(scores.logprobs, chosen, atol=1e-5)
    for own, top in zip(wanted, scores.tops, strict=True):
        assert [token for token, _ in top] == np.argsort(-own)[:2].tolist()


def test_what_the_model_refuses_ends_that_request_alone(engine):
    batch, found = ContinuousBatch(engine, Words()), Collected()
    batch.add(replace(_plain((5, 99_999), 4), number=1))
    batch.add(replace(_plain((5, 6), 4), number=2))
    ruled_out = replace(_plain((5, 6), 4), number=3, rules=(_nothing,))
    ruled_out.config.do_sample = True
    batch.add(ruled_out)
    found.drain(batch)
    assert {event.number: type(event) for event in found.others} == {1: Failed, 3: Failed}
    assert "outside of the vocabulary" in found.others[0].message
    assert found.ended == {(2, 0): "length"} and engine.cache.num_free == engine.cache.num_slots


def _nothing(ids, scores):
    return np.full_like(scores, -np.inf)


class _Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids, skip_special_tokens=False):
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "stops", "wanted"),
    [
        ("one two", (), "one two"),
        ("Grüße, 世界 🙂!", (), "Grüße, 世界 🙂!"),
        ("one. two", (". ",), "one"),
        ("a<|e<|end|>b", ("<|end|>",), "a<|e"),
        ("a<|e", ("<|end|>",), "a<|e"),
        ("xyz", ("yz", "xyz"), ""),
    ],
)
def test_a_text_grows_by_what_is_sure(text, stops, wanted):
    growing, pieces = GrowingText(_Bytes(), b"before ", stops), []
    for token in text.encode():
        pieces.append(growing.push(token))
        if growing.is_stopped:
            break
    pieces.append(growing.end())
    assert "".join(pieces) == wanted
    assert not any("\ufffd" in piece for piece in pieces)
    assert growing.is_stopped == (wanted != text)


def test_stop_strings_are_not_looked_for_in_the_prompt():
    growing = GrowingText(_Bytes(), b"a\n", ("\n\n",))
    assert growing.push(ord("\n")) == "" and not growing.is_stopped
    assert growing.push(ord("\n")) == "" and growing.is_stopped


def test_half_a_character_is_told_at_the_end():
    growing = GrowingText(_Bytes(), b"", ())
    assert growing.push("é".encode()[0]) == ""
    assert growing.end() == "\ufffd"


def test_rules():
    scores = np.zeros((1, 6), np.float32)
    found = Penalties(2, 0.5, 0.25)(np.array([[5, 5, 1, 2, 1]]), scores)
    assert found.tolist() == [[0, -1.0, -0.75, 0, 0, 0]]
    assert NeverAfter(3, 4)(np.array([[1, 3]]), scores)[0, 4] == -np.inf
    assert NeverAfter(3, 4)(np.array([[3, 1]]), scores)[0, 4] == 0
    single = LineEnds(frozenset({1}), frozenset({2}), False)
    assert single(1, 0) and single(2, 0) and not single(3, 1)
    double = LineEnds(frozenset({1}), frozenset({2}), True)
    assert not double(1, 0) and double(1, 1) and double(2, 0)


def test_a_desk_takes_what_it_has_room_for_and_finishes_before_it_stops(engine):
    desk, found = Desk(2, Metrics()), Collected()
    assert desk.submit([_plain((5, 6), 3)] * 2, found.take) == [0, 1]
    with pytest.raises(FullError):
        desk.submit([_plain((5, 6), 3)], found.take)
    desk.cancel([1, 1])
    assert desk.submit([_plain((5, 6), 2)], found.take) == [2]
    desk.stop()
    with pytest.raises(StoppingError):
        desk.submit([_plain((5, 6), 3)], found.take)
    run(ContinuousBatch(engine, Words()), desk)
    assert found.ended == {(0, 0): "length", (2, 0): "length"} and desk.num_open == 0
    text = desk.metrics.text()[0].decode()
    assert "mindspeed_ms_generated_tokens_total 5.0" in text
    assert 'sequences_finished_total{reason="length"} 2.0' in text
    assert "mindspeed_ms_requests_cancelled_total 1.0" in text
