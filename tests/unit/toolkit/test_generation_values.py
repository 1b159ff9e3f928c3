# SPDX-License-Identifier: Apache-2.0
"""Every option of generation refuses, at once, values that it cannot be."""

import pytest

from mindspeed_ms.toolkit.generation.config import DEFAULTS, GenerationConfig

NONSENSE = [
    *("x", "", float("nan"), float("inf"), float("-inf"), 1 << 64, {"a": 1}, {1: 2}),
    *([None], ["x"], [[[]]], [1.5], object(), b"x", [[1], "x"], {"a": {"b": 1}}, 5, True, [True]),
]
SOUND = {
    "sequence_bias": {(1, 2): 0.5},
    "bad_words_ids": [[1], [2, 3]],
    "max_time": 5,
    "min_p": 0.1,
    "top_h": 0.5,
    "stop_strings": ["a", "b"],
    "forced_bos_token_id": 1,
    "forced_eos_token_id": [1, 2],
    "exponential_decay_length_penalty": (3, 1.1),
    "suppress_tokens": [1],
    "begin_suppress_tokens": [],
    "pad_token_id": -1,
    "bos_token_id": 0,
    "eos_token_id": [1, 2],
    "max_new_tokens": 5,
    "min_new_tokens": 5,
    "early_stopping": "never",
}
TEXTS = {"stop_strings": ("x", "", ["x"]), "early_stopping": ("never", True)}
NUMBERS = {name for name, value in DEFAULTS.items() if isinstance(value, float)}
NUMBERS |= {"max_time", "min_p", "top_h", "assistant_confidence_threshold"}
COUNTS = {"max_new_tokens", "min_new_tokens", "prompt_lookup_num_tokens", "num_assistant_tokens"}
IDS = {"pad_token_id", "bos_token_id", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id"}


def may_be(name, value):
    """Whether a nonsense value is sense for one option."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value == 5
    if name in NUMBERS:
        return is_whole or value == 1 << 64
    if isinstance(DEFAULTS[name], bool) and value is True:
        return True
    if name in IDS | COUNTS or type(DEFAULTS[name]) is int:
        return is_whole
    return any(type(value) is type(text) and value == text for text in TEXTS.get(name, ()))


@pytest.mark.parametrize("name", DEFAULTS)
def test_nonsense_is_refused_by_name(name):
    for value in NONSENSE:
        if may_be(name, value):
            GenerationConfig(**{name: value})
            continue
        with pytest.raises(ValueError, match=f"^{name} is .*; it must be ") as caught:
            GenerationConfig(**{name: value})
        assert len(str(caught.value)) < 400


def test_what_options_are_is_taken():
    for name, value in {**DEFAULTS, **SOUND}.items():
        assert getattr(GenerationConfig(**{name: value}), name) == value
