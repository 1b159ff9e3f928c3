# SPDX-License-Identifier: Apache-2.0
"""Inputs beside checkpoints that want to hurt: see ``hostile_inputs``."""

import hostile_inputs as hostile
import pytest
from jobs import reported

HARMLESS = {
    "tokenizers": (
        *("an id of 2**32 - 1", "an id of 2**31", "an id twice", "an added id of 2**32 - 1"),
        *("an added id of 2**31", "an added token without a letter", "added tokens with one id"),
        *("an added token with a NUL", "a pattern that goes back", "a pattern that goes back far"),
        *("a pattern that repeats", "a pattern of nothing", "steps nested deep"),
        *("padding to 2**40", "added tokens by huge ids", "a length of 2**200"),
        *("a class of the system", "a class elsewhere"),
    ),
    "models": ("many kinds of layers", "a type of numbers", "its own name twice"),
    "indices": (),
    "lines": (
        *("a NUL", "half a pair", "two halves the wrong way", "a text that is a number"),
        *("a text that is missing", "a text that is null", "the field twice"),
        *("many empty lines", "many fields"),
    ),
    "yamls": ("a date", "a time", "a number of a million digits", "sixties"),
}
"""Read without harm, whatever is done with what was read: nothing is called, nothing is taken."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", hostile.KINDS)
def test_inputs_that_want_to_hurt_are_one_line(tmp_path, kind):
    """Within seconds, and half a gigabyte."""
    report = reported(hostile.__file__, tmp_path, kind)
    assert len(report) > 15
    for name, found in report.items():
        is_read = name.rpartition(": ")[2] in HARMLESS[kind]
        assert found.startswith("read" if is_read else "refused: "), (name, found)
