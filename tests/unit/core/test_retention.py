# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints may go: those of the present run, and never the newest sound one."""

import pytest

from mindspeed_ms.core.dist_checkpointing.retention import Saved, expired


def saves(text):
    """``a3`` of run a; ``a3!`` holds NaN; ``-3`` of a run that is not noted."""
    for word in text.split():
        run, number, is_sound = word[0], word[1:].rstrip("!"), not word.endswith("!")
        yield Saved(int(number), None if run == "-" else run, is_sound)


@pytest.mark.parametrize(
    ("present", "newest", "keep", "retained", "gone"),
    [
        ("a1 a2 a3", "a4", 2, None, [1, 2]),
        ("a1 a2 a3", "a4", 4, None, []),
        ("a1 a2 a3", "a4", 1, 2, [1, 3]),
        ("b1 b2 -3 a4 a5", "a6", 2, None, [4]),
        ("a1 a2 a3! a4!", "a5!", 2, None, [1, 3]),
        ("a1 a2! a3!", "a4", 2, None, [1, 2]),
        ("a1! a2! a3!", "a4!", 1, None, [1, 2, 3]),
        ("b1 b2!", "a3!", 1, None, []),
        ("a7", "a4", 1, None, [4]),
    ],
)
def test_what_expires(present, newest, keep, retained, gone):
    (last,) = saves(newest)
    assert expired(saves(present), last, keep, retained) == gone
