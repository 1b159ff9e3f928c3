# SPDX-License-Identifier: Apache-2.0
"""Configuration files that would take memory or time without end, or are no YAML at all."""

import os
import time

import pytest

from mindspeed_ms.config.yaml_reader import MOST_BYTES, read_yaml


def tower(levels, leaf, line):
    """Parts that name the one before ten times."""
    before = [f"p0: &p0 {leaf}"]
    return "\n".join(
        [*before, *(line(level, ", ".join([f"*p{level}"] * 10)) for level in range(levels))]
    )


CASES = {
    "lists": (tower(12, "[1, 1]", lambda n, ten: f"p{n + 1}: &p{n + 1} [{ten}]"), "more than"),
    "merged": (
        tower(9, "{x: 1}", lambda n, ten: f"p{n + 1}: &p{n + 1} {{<<: [{ten}], k{n}: 1}}"),
        "more than",
    ),
    "itself": ("a: &a [*a]", "within itself"),
    "deep lists": ("[" * 20000, "nests blocks"),
    "deep keys": ("{a: " * 2000, "nests blocks"),
    "deep dashes": ("- " * 20000, "nests blocks"),
    "key": ("? [a]\n: 1", "a key is not a word"),
    "boolean": ("a: !!bool maybe", "is not accepted"),
    "timestamp": ("a: !!timestamp x", "is not accepted"),
    "mapping": ("!!map [1]", "is not accepted"),
    "call": ("a: !!python/object/apply:os.system [ls]", "is not accepted"),
    "zero": ("a: \x00", "special characters"),
    "escape": ('a: "\\U00110000"', "an escape is no character"),
    "half a pair": ('a: "\\ud800"', "half a pair of surrogates"),
    "half a pair as key": ('"\\udc00": a', "half a pair of surrogates"),
    "large": ("#" + "x" * MOST_BYTES, "at most"),
}


@pytest.mark.parametrize("kind", CASES)
def test_what_is_wrong_is_one_line(tmp_path, kind):
    text, part = CASES[kind]
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=part) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_number_takes_no_time_by_its_square(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: " + "1" * 200_000 + "x", encoding="utf-8")
    start = time.process_time()
    assert isinstance(read_yaml(path)["a"], str)
    assert time.process_time() - start < 10


def test_a_pipe_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="is a pipe"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["2020-13-45", "9" * 5000, "0b_", "1:30", "1_000"])
def test_what_is_no_plain_number_is_text(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(f"a: {text}", encoding="utf-8")
    assert read_yaml(path) == {"a": text}


def test_references_may_repeat_a_part(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {b: 1e-5}\nc: *a\nd: {<<: *a, e: 1.5e3}\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"b": 1e-5}, "c": {"b": 1e-5}, "d": {"b": 1e-5, "e": 1500.0}}
