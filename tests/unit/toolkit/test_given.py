# SPDX-License-Identifier: Apache-2.0
"""Callers of the high-level room who hand over anything get one line of this project's own."""

import numpy as np
import pytest
from generation_models import generator, write_folder, write_tokenizer

from mindspeed_ms import AutoModelForCausalLM, AutoTokenizer, pipeline
from mindspeed_ms.toolkit import given, hub

pytestmark = pytest.mark.usefixtures("single_rank")
CUBE = np.zeros((2, 2, 2))
ANYTHING = [5, 1.5, "x\0", b"x", object(), [[1, 2], [3]], CUBE, {1: 2}, True, "\ud800"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(write_folder("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def tools(folder):
    model, tokenizer = generator(folder), AutoTokenizer.from_pretrained(folder)
    return model, tokenizer, pipeline("text_generation", model=model, tokenizer=tokenizer)


def generated(name):
    return lambda model, tokenizer, pipe, x: model.generate([[1]], max_new_tokens=1, **{name: x})


def first(value, instead):
    """The first of anything is fine here; another one takes its place."""
    return instead if value is ANYTHING[0] else value


CALLS = {
    **{name: generated(name) for name in ("generation_config", "streamer", "logits_processor")},
    **{name: generated(name) for name in ("stopping_criteria", "prefix_allowed_tokens_fn")},
    "mask": generated("attention_mask"),
    "prompt": lambda model, tokenizer, pipe, x: pipe(x),
    "batch_size": lambda model, tokenizer, pipe, x: pipe("w1", batch_size=first(x, 0)),
    "task": lambda model, tokenizer, pipe, x: pipeline(x, model=model, tokenizer=tokenizer),
    "tokenizer": lambda model, tokenizer, pipe, x: type(pipe)(model, x),
    "decode": lambda model, tokenizer, pipe, x: tokenizer.decode(first(x, -1)),
    "ids": lambda model, tokenizer, pipe, x: tokenizer.convert_ids_to_tokens(first(x, -1)),
    "tokens": lambda model, tokenizer, pipe, x: tokenizer.convert_tokens_to_ids([x, 5]),
    "padding": lambda model, tokenizer, pipe, x: tokenizer("w1", padding=5 if x is True else x),
    "save": lambda model, tokenizer, pipe, x: tokenizer.save_pretrained(x),
    "load": lambda model, tokenizer, pipe, x: AutoModelForCausalLM.from_pretrained(x),
}


FINE = {("decode", list), ("prompt", str), ("generation_config", dict)}
"""Rows of ids, texts, and options of another library."""


@pytest.mark.parametrize("name", CALLS)
def test_anything_is_refused_in_own_words(name, tools, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in ANYTHING:
        if (name, type(value)) in FINE:
            continue
        with pytest.raises((TypeError, ValueError, OSError, KeyError)) as caught:
            CALLS[name](*tools, value)
        last = caught.traceback[-1]
        assert "mindspeed_ms" in str(last.path), (value, caught.value)
        assert "raise " in str(last.statement), (value, caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_given_rightly_is_taken():
    assert given.callables("f", None) == [] and given.callables("f", (len,)) == [len]
    assert given.whole("n", np.int64(3), 1) == 3 and given.token_id(7) == 7
    assert hub.checked_name("\udcff") == "\udcff"  # bytes of a name that are no UTF-8
    with pytest.raises(ValueError, match="more than any vocabulary has"):
        given.token_id(1 << 40)
