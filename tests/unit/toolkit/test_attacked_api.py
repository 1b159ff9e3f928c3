# SPDX-License-Identifier: Apache-2.0
"""Whatever a script hands to a public name: it works, or one line of this project says why not."""

import api_attacks as attacks
import numpy as np
import pytest

import mindspeed_ms
from mindspeed_ms.toolkit import given
from mindspeed_ms.toolkit.models import hub_upload

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_no_call_ends_in_a_foreign_error(tmp_path, monkeypatch, count, first_seed):
    monkeypatch.chdir(tmp_path)
    found = attacks.faults(attacks.Room(tmp_path), first_seed, count)
    assert not found, "\n".join(f"{place} {text}" for place, text in found.items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mindspeed_ms.merge_adapter(5), "model is 5; give one of AutoModelForCausalLM"),
        (lambda: mindspeed_ms.init_context(np.zeros(2)), "use_parallel is array"),
        (lambda: mindspeed_ms.GenerationConfig().set_nothing(None), "names is None"),
        (lambda: mindspeed_ms.GenerationConfig().set_nothing([[1]]), "names is"),
        (lambda: mindspeed_ms.init_context(1), "use_parallel is 1, but must be True or False"),
        (lambda: mindspeed_ms.ContextConfig(0, "CPU", 0, 1), "has 4 values without a name"),
        (lambda: mindspeed_ms.TrainingArguments(output_dir=np.zeros(2)), "output_dir is array"),
    ],
)
def test_what_once_ended_deep_inside(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    "name", ["", "BAD NAME", "a/b/c", "-a", "a-", "a--b", "o/a..b", "o/a.git", "x" * 97, b"x", None]
)
def test_names_that_the_hub_refuses_are_refused_before_the_work(name, tmp_path):
    with pytest.raises(ValueError, match="is no name of a repository; write OWNER/NAME"):
        hub_upload.push_to_hub(tmp_path, name)


def test_helpers_take_what_is_right():
    assert given.mapping("m", {"a": 1}) == {"a": 1} and given.switch("s", np.bool_(True)) is True
    assert given.rows("r", ("a",), str) == ["a"] and hub_upload.repository("a/b_c-1") == "a/b_c-1"
    for wrong in ({1: 2}, [1]):
        with pytest.raises(TypeError, match="must be values by name"):
            given.mapping("m", wrong)
