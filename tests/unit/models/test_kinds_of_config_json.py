# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in a ``config.json`` is read, or refused in one line."""

import copy
import random
import signal

import family_cases
import pytest

from mindspeed_ms.models.families import kinds
from mindspeed_ms.models.families.registry import FAMILIES, family_of_type

WRONG = (
    *(None, "x", "", "64", -1, 0, 1.5, 2**70, -1e30, 1e-300, True, False),
    *([], [1], [[1]], {}, {"a": 1}, float("nan"), float("inf")),
)
SECONDS = 5


class TooSlowError(BaseException):
    """Reading does not come back."""


@pytest.fixture(autouse=True)
def in_time():
    def ring(*unused):
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def paths(block, above=()):
    for key, value in block.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def changed(config, path, value):
    config = copy.deepcopy(config)
    block = config
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    return config


@pytest.mark.parametrize("case", family_cases.CASES)
def test_a_wrong_value_of_any_key_is_read_or_one_line(case, first_seed):
    draw = random.Random(f"{case} {first_seed}")
    sound = family_cases.recorded(case)["config"]
    family = family_of_type(sound["model_type"])
    refused = 0
    for path in paths(sound):
        for value in draw.sample(WRONG, 8):
            signal.alarm(SECONDS)
            try:
                family.config(changed(sound, path, value))
            except ValueError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 20


def test_every_key_that_a_family_reads_has_a_kind():
    read = {key for family in FAMILIES for rule in family.rules for key in rule.keys}
    assert not read - kinds.KINDS.keys()
    assert "anything" not in {kind.text for kind in kinds.KINDS.values()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2**40}, "num_hidden_layers 1099511627776, but it must be a whole"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers '2', but it must be a whole number of 1"),
        ({"tie_word_embeddings": "maybe"}, "tie_word_embeddings 'maybe', but it must be true or"),
        ({"rope_theta": 0}, "rope_theta 0, but it must be a finite number above 0; correct it"),
        ({"rope_scaling": 5}, "rope_scaling 5, but it must be a block of keys and values"),
        ({"rope_scaling": {"factor": "8"}}, "rope_scaling.factor '8', but it must be a finite"),
        ({"eos_token_id": "</s>"}, "eos_token_id '</s>', but it must be the id of a token"),
        ({"hidden_act": ["silu"]}, "hidden_act ['silu'], but it must be a text"),
        ({"vocab_size": None}, "config.json has no vocab_size; every model of this type needs it"),
    ],
)
def test_what_is_said_about_a_wrong_kind(changes, message):
    config = {**family_cases.recorded("llama")["config"], **changes}
    with pytest.raises(ValueError, match=r"^config\.json has ") as caught:
        family_of_type("llama").sections(config)
    assert message in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_what_is_written_has_the_right_kinds(family):
    for size in family.presets.values():
        config = family.config(size)
        kinds.check_kinds(family.config_json(config, size["vocab_size"]))
