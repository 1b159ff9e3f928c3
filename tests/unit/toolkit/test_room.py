# SPDX-License-Identifier: Apache-2.0
"""Lengths and numbers of sequences that no memory has room for are refused before anything runs."""

from __future__ import annotations

import pytest
from generation_models import generator, write_folder, write_tokenizer

from mindspeed_ms.backend.host_memory import FreeMemory
from mindspeed_ms.planning.cache import cache_bytes_per_token
from mindspeed_ms.toolkit.generation import room
from mindspeed_ms.toolkit.serve import command
from mindspeed_ms.toolkit.serve.command import longest, make_parser, settings_of

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(write_folder("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def model(folder):
    return generator(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 2147483648},
        {"max_length": 1 << 50},
        {"max_decode_length": 1 << 62},
        {"num_beams": 1 << 40},
        {"do_sample": True, "num_return_sequences": 1 << 34},
    ],
)
def test_generation_says_what_does_not_fit(model, options):
    with pytest.raises(ValueError, match=r"need a cache of [\d,]+ GiB, but .* GiB left; .*: lower"):
        model.generate([[1, 2, 3]], **options)


def test_the_limit_is_what_is_left(model, monkeypatch):
    config = model.engine_config
    of_token = cache_bytes_per_token(config, 0) + room.OF_A_TOKEN
    tokens = 3 * room.GIB // of_token
    free = [3 * room.GIB]
    monkeypatch.setattr(room, "free_memory", lambda: FreeMemory(free[0], "this host"))
    room.require_room(config, 1, tokens, "fewer")
    room.require_room(config, 2, tokens // 2, "fewer")
    with pytest.raises(ValueError, match="made for 64 positions: fewer"):
        room.require_room(config, 2, tokens, "fewer")
    free[0] = 0
    room.require_room(config, 1, room.GIB // of_token, "fewer")  # not worth a look


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--max-model-len", "2147483648"), "--max-model-len is 2147483648, but the model has 64"),
        (("--max-batch-size", "2147483648"), "lower --max-batch-size"),
    ],
)
def test_a_server_begins_with_nothing_of_that_kind(folder, flags, words, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--model", str(folder), *flags])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and words in error and error.count("\n") == 1


def test_a_server_may_have_fewer_tokens_than_positions(folder, model):
    settings = settings_of(
        make_parser().parse_args(["--model", str(folder), "--max-model-len", "9"])
    )
    assert longest(settings, model) == 9
