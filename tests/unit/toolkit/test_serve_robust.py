# SPDX-License-Identifier: Apache-2.0
"""One request, whatever it asks for, ends neither the server nor the answers of others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from generation_models import generator, write_folder
from serve_cases import SERVED, Collected, Words, alone, requests

from mindspeed_ms.backend import memory
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.serve.batch import INTERNAL, ContinuousBatch, Failed, Request
from mindspeed_ms.toolkit.serve.command import _Beams
from mindspeed_ms.toolkit.serve.fields import ApiError
from mindspeed_ms.toolkit.serve.megatron_forms import MegatronAnswer, megatron_job
from mindspeed_ms.toolkit.serve.openai_forms import chat_job, completion_job
from mindspeed_ms.toolkit.serve.rules import NeverAfter

pytestmark = pytest.mark.usefixtures("single_rank")
HUGE = 10**300


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return generator(write_folder("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture
def engine(model):
    with model.inference_engine(4) as made:
        yield made


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop_token_ids", [-1000000]),
        ("stop_token_ids", [96]),
        ("repetition_penalty", 0),
        ("repetition_penalty", HUGE),
        ("repetition_penalty", float("inf")),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("typical_p", 0),
        ("typical_p", -1.0),
        ("top_k", HUGE),
        ("top_k", -2),
        ("seed", HUGE),
        ("min_tokens", HUGE),
        ("no_repeat_ngram_size", HUGE),
        ("max_tokens", HUGE),
        ("logit_bias", {"96": 1}),
        ("logit_bias", {"5": float("inf")}),
        ("presence_penalty", HUGE),
    ],
)
def test_every_number_of_a_request_has_bounds(field, value):
    with pytest.raises(ApiError) as caught:
        completion_job({"prompt": "w5 w6", field: value}, SERVED)
    assert caught.value.status == 400 and caught.value.body["error"]["param"] == field


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-300},
        {"temperature": 1e-6, "top_p": 0.0, "top_k": 1},
        {"repetition_penalty": 0.01, "frequency_penalty": 2, "presence_penalty": -2},
        {"typical_p": 1e-6, "min_p": 1.0},
        {"min_tokens": 64, "stop_token_ids": [0, 95]},
        {"logit_bias": {"5": -100, "95": 100}},
        {"seed": -(2**63), "top_k": 2**31 - 1},
        {"no_repeat_ngram_size": 1},
    ],
)
def test_numbers_at_their_bounds_get_an_answer(engine, options):
    job = completion_job({"prompt": "w5 w6", "max_tokens": 3, **options}, SERVED)
    batch = ContinuousBatch(engine, Words())
    for request in job.requests:
        batch.add(request)
    found = Collected().drain(batch)
    assert not found.others and list(found.ended) == [(-1, 0)]


def test_a_chat_template_that_makes_no_tokens_is_refused():
    class Chatting(Words):
        def apply_chat_template(self, messages, **variables):
            return "w5" if variables.get("tokenize") is False else [5]

    served = replace(SERVED, tokenizer=Chatting())
    body = {"messages": [{"role": "user", "content": "w5"}]}
    assert chat_job(body, served).requests[0].prompt == (5,)
    with pytest.raises(ApiError, match="makes no tokens"):
        chat_job({**body, "chat_template_kwargs": {"tokenize": False}}, served)


class Showing(Words):
    """A template that shows tools, and calls of them, as their number."""

    def apply_chat_template(self, messages, tools=(), **variables):
        calls = sum(len(message.get("tool_calls") or ()) for message in messages)
        return [len(messages), len(tools), calls]


def test_tools_are_for_the_template_where_none_is_to_be_called():
    served = replace(SERVED, tokenizer=Showing())
    messages = [
        {"role": "user", "content": "w5"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        {"role": "tool", "tool_call_id": "a", "content": "w6"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}] * 2
    body = {"messages": messages, "tools": tools, "tool_choice": "none"}
    assert chat_job(body, served).requests[0].prompt == (3, 2, 1)
    assert chat_job({"messages": messages}, served).requests[0].prompt == (3, 0, 1)
    for choice in ({}, {"tool_choice": "auto"}, {"tool_choice": "required"}):
        with pytest.raises(ApiError, match="not read out of its text; set tool_choice to 'none'"):
            chat_job({"messages": messages, "tools": tools, **choice}, served)
    with pytest.raises(ApiError, match="tools must be a list of objects"):
        chat_job({**body, "tools": ["f"]}, served)
    with pytest.raises(ApiError, match=r"messages\[0\] must have a text"):
        chat_job({"messages": [{"role": "assistant", "content": None}]}, served)


@pytest.mark.parametrize(
    ("field", "neutral", "value"),
    [
        ("guided_json", None, {"type": "object"}),
        ("structured_outputs", None, {"json": {}}),
        ("use_beam_search", False, True),
        ("length_penalty", 1.0, 0.5),
        ("skip_special_tokens", True, False),
        ("include_stop_str_in_output", False, True),
        ("bad_words", [], ["w5"]),
    ],
)
def test_fields_of_other_servers_keep_their_default_or_are_refused_with_the_reason(
    field, neutral, value
):
    completion_job({"prompt": "w5", field: neutral, "cache_salt": "a"}, SERVED)
    with pytest.raises(ApiError, match=f"{field} is not served: ") as caught:
        completion_job({"prompt": "w5", field: value}, SERVED)
    assert caught.value.body["error"]["code"] == "unsupported_parameter"


def _plain(number, **options):
    config = GenerationConfig(eos_token_id=7, **options).filled()
    config.max_length = 6
    return Request(number=number, prompt=(5, 6), config=config)


def _broken(ids, scores):
    raise RuntimeError("a fault of the program")


def _broken_later(ids, scores):
    return scores if ids.shape[1] < 4 else _broken(ids, scores)


def test_requests_that_fail_leave_no_slot_and_the_others_get_their_answers(model, engine, caplog):
    """At each of the places where one can: before its slot, in its prompt, at a later token."""
    batch, others = ContinuousBatch(engine, Words()), requests(2)[:4]
    for request in others:
        batch.add(request)
    batch.add(_plain(90, repetition_penalty=0.0))
    batch.add(replace(_plain(91), prompt=(5, 96)))
    batch.add(replace(_plain(92), prompt=(5, 96), scores_prompt=True))
    batch.add(replace(_plain(93), rules=(_broken,)))
    batch.add(replace(_plain(94), rules=(_broken_later,), names=(1, 2)))
    batch.add(replace(_plain(95), is_beam=True))
    found = Collected().drain(batch)
    assert engine.cache.num_free == engine.cache.num_slots
    failed = {event.number: event for event in found.others}
    assert sorted(failed) == [90, 91, 92, 93, 94, 95] and len(found.others) == 6
    internal = {number for number, event in failed.items() if event.is_internal}
    assert internal == {93, 94} and "a fault" not in failed[93].message
    assert "repetition_penalty is 0.0" in failed[90].message
    assert "a fault of the program" in caplog.text
    for request in others:
        assert found.rows(request.number) == alone(model, request)


def test_a_step_that_fails_ends_what_runs_and_the_next_request_is_answered(
    model, engine, monkeypatch
):
    batch, request = ContinuousBatch(engine, Words()), requests(1)[0]
    batch.add(replace(request, number=50))
    batch.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "step", lambda slots, tokens: _broken(None, None))
        assert batch.step() == [Failed(50, INTERNAL, True)]
    assert engine.cache.num_free == engine.cache.num_slots and not batch.has_work
    batch.add(request)
    assert Collected().drain(batch).rows(request.number) == alone(model, request)


def test_what_one_rank_alone_meets_is_not_the_end_of_a_request(engine, monkeypatch):
    """The others would wait for it."""
    monkeypatch.setattr("mindspeed_ms.toolkit.serve.batch.comm.get_world_size", lambda: 2)
    batch = ContinuousBatch(engine, Words())
    batch.add(replace(_plain(0), rules=(_broken,)))
    with pytest.raises(RuntimeError, match="a fault"):
        batch.step()


def _wrong(ids, scores):
    return scores[:, 10**6]


def test_a_fault_that_all_ranks_meet_ends_its_request(engine, monkeypatch):
    monkeypatch.setattr("mindspeed_ms.toolkit.serve.batch.comm.get_world_size", lambda: 2)
    batch = ContinuousBatch(engine, Words())
    batch.add(replace(_plain(0), rules=(_wrong,)))
    assert batch.step() == [Failed(0, INTERNAL, True)]


def test_a_search_of_one_beam(model):
    """Its score is that of more beams: the sum of logarithms over the length."""
    body = {"prompts": ["w5 w6 w9"], "tokens_to_generate": 6, "beam_width": 1, "stop_token": 95}
    job = megatron_job(body, SERVED)
    event = _Beams(model)(job.requests[0])
    answer = MegatronAnswer(job, SERVED, [-1])
    answer.take(event)
    output = model.generate([[5, 6, 9]], max_new_tokens=6, return_dict_in_generate=True)
    assert event.rows == (tuple(memory.as_numpy(output.sequences)[0, 3:].tolist()),)
    wanted = memory.as_numpy(output.logprobs)[0].sum() / 6
    np.testing.assert_allclose(answer.whole()["scores"], [wanted], rtol=1e-5)
    barred = replace(job.requests[0], rules=(NeverAfter(9, event.rows[0][0]),))
    assert _Beams(model)(barred).rows[0][0] != event.rows[0][0]
