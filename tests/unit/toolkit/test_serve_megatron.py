# SPDX-License-Identifier: Apache-2.0
"""Megatron's flags of text generation, and what its ``PUT /api`` refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import serve_cases
from serve_cases import served_folder

from mindspeed_ms.toolkit.serve import command, megatron_command
from mindspeed_ms.toolkit.serve.megatron_forms import MegatronError, megatron_job
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.flags import ROWS, NoEffect
from mindspeed_ms.training.flags.other_programs import SERVER_FLAGS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served_folder(tmp_path_factory.mktemp("llama"))


def _settings(folder, *flags):
    words = ["--load", str(folder), *flags]
    return megatron_command.settings_of(parse_args(words, megatron_command.add_server_flags))


def test_every_flag_of_the_server_has_its_effect(folder):
    plain = _settings(folder)
    assert (plain.port, plain.max_rows, plain.max_tokens_to_oom) == (5000, 8, 12000)
    assert plain.max_cache_bytes == 40 * 2**30 and plain.max_length == 2560
    effects = {
        "--inference-max-requests": (3, {"max_rows": 3}),
        "--inference-max-batch-size": (4, {"max_rows": 4}),
        "--inference-dynamic-batching-max-requests": (5, {"max_rows": 5}),
        "--inference-dynamic-batching-max-requests-override": (6, {"max_rows": 6}),
        "--inference-dynamic-batching-max-tokens": (7, {"max_step_tokens": 7}),
        "--inference-dynamic-batching-max-tokens-override": (8, {"max_step_tokens": 8}),
        "--inference-dynamic-batching-buffer-size-gb": (0.5, {"max_cache_bytes": 2**29}),
        "--inference-max-seq-length": (9, {"max_length": 9}),
        "--inference-logging-step-interval": (10, {"log_interval": 10}),
        "--inference-text-gen-server-logging": (None, {"access_log": True}),
        "--max-tokens-to-oom": (11, {"max_tokens_to_oom": 11}),
    }
    assert set(effects) == {name for name in SERVER_FLAGS if "_" not in name} - {
        "--no-inference-text-gen-server-logging"
    }
    for flag, (value, effect) in effects.items():
        words = [flag] if value is None else [flag, str(value)]
        found = _settings(folder, *words)
        for name, wanted in effect.items():
            assert getattr(found, name) == wanted != getattr(plain, name), flag


def test_the_other_flags_of_text_generation_say_why_they_have_none():
    rows = [row for row in ROWS if row.group == "text generation"]
    assert len(rows) > 55 and all(isinstance(row.state, NoEffect) for row in rows)
    assert len({row.state.reason for row in rows}) > 10


def test_flags_that_contradict_the_checkpoint_are_refused(folder):
    assert _settings(folder, "--num-layers", "2", "--hidden-size", "32").max_rows == 8
    with pytest.raises(ValueError, match=r"--num-layers makes num_layers 7, but in the checkpoint"):
        _settings(folder, "--num-layers", "7")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        _settings("nowhere")
    with pytest.raises(ValueError, match="at least 1"):
        _settings(folder, "--inference-max-requests", "0")


def test_flags_of_training_that_no_server_reads_are_told_and_context_parallelism_is_refused(folder):
    def args(*flags):
        return parse_args(["--load", str(folder), *flags], megatron_command.add_server_flags)

    assert megatron_command.unread(args("--bf16", "--tokenizer-type", "NullTokenizer")) == []
    (line,) = megatron_command.unread(args("--micro-batch-size", "1", "--num-layers", "2"))
    assert line == "--micro-batch-size: of training, the server does not read them"
    with pytest.raises(ValueError, match="--context-parallel-size is 2; text generation needs 1"):
        _settings(folder, "--context-parallel-size", "2")
    with pytest.raises(ValueError, match="--bf16 and --fp16 name two types"):
        _settings(folder, "--bf16", "--fp16")


SERVED = replace(serve_cases.SERVED, max_tokens_to_oom=150)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "prompts argument required"),
        ({"prompts": ["w5"], "sentences": 1}, "sentences is no longer used.  Replace with prompts"),
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": ["w5"] * 129}, "Maximum number of prompts is 128"),
        (
            {"prompts": ["w5"], "tokens_to_generate": "3"},
            "tokens_to_generate must be an integer greater than 0",
        ),
        (
            {"prompts": ["w5"], "tokens_to_generate": -1},
            "tokens_to_generate must be an integer greater than or equal to 0",
        ),
        (
            {"prompts": ["w5"], "tokens_to_generate": 0},
            "tokens_to_generate=0 implies logprobs=True",
        ),
        ({"prompts": ["w5"], "logprobs": 1}, "logprobs must be a boolean value"),
        (
            {"prompts": ["w5"], "temperature": 0},
            "temperature must be a positive number less than or equal to 100.0",
        ),
        (
            {"prompts": ["w5"], "top_k": 1001},
            "top_k must be an integer equal to or greater than 0 and less than or equal to 1000",
        ),
        (
            {"prompts": ["w5"], "top_p": 1},
            "top_p must be a positive float less than or equal to 1.0",
        ),
        ({"prompts": ["w5"], "top_p": 1.5}, "top_p must be less than or equal to 1.0"),
        ({"prompts": ["w5"], "top_p_decay": 0.5}, "top_p_decay cannot be set without top_p"),
        (
            {"prompts": ["w5"], "top_p": 0.5, "top_p_bound": 0.6},
            "top_p_bound must be greater than 0 and less than top_p",
        ),
        ({"prompts": ["w5"], "stop_on_eol": 1}, "stop_on_eol must be a boolean value"),
        ({"prompts": ["w5"], "random_seed": -1}, "random_seed must be a positive integer"),
        ({"prompts": ["w5"], "beam_width": 0}, "beam_width must be an integer > 1"),
        (
            {"prompts": ["w5"], "beam_width": 2**40},
            "beam_width must be less than or equal to 128",
        ),
        ({"prompts": ["w5"], "stop_token": 2**70}, "stop_token must be from 0 to 95"),
        ({"prompts": ["w5"], "stop_token": -1}, "stop_token must be from 0 to 95"),
        (
            {"prompts": ["w5"], "beam_width": 2, "length_penalty": 10**400},
            "length_penalty must be from -10 to 10",
        ),
        (
            {"prompts": ["w5"], "length_penalty": float("nan")},
            "length_penalty must be from -10 to 10",
        ),
        (
            {"prompts": ["w5"] * 3, "tokens_to_generate": 60},
            "Too many tokens.  183 is greater than 150",
        ),
    ],
)
def test_megatrons_words_for_mistakes(body, words):
    with pytest.raises(MegatronError) as error:
        megatron_job(body, SERVED)
    assert str(error.value) == words


def test_a_begin_token_and_rules_reach_the_batch():
    body = {"prompts": [""], "add_BOS": True, "tokens_to_generate": 5, "top_p": 0.8}
    (request,) = megatron_job(body | {"top_p_decay": 0.9, "top_p_bound": 0.2}, SERVED).requests
    assert request.prompt == (7,) and request.config.max_length == 6
    (rule,) = request.rules
    assert (rule.top_p, rule.decay, rule.bound) == (0.8, 0.9, 0.2)
    assert request.config.top_p == 1.0 and request.config.do_sample
    (request,) = megatron_job(
        {"prompts": ["w5"], "top_k": 1, "tokens_to_generate": 1}, SERVED
    ).requests
    assert not request.config.do_sample


@pytest.mark.usefixtures("single_rank")
def test_a_bound_of_the_cache_bounds_the_sequences(folder):
    model = command.AutoModelForCausalLM.from_pretrained(folder)
    settings = command.Settings(model=str(folder), name="tiny", loading={})
    assert command.longest(settings, model) == 64
    with model.inference_engine() as engine:
        engine.add([[5] * 64])
        one = engine.cache.num_bytes
    assert command.rows_within(3 * one, settings, model) == 3
    assert command.rows_within(99 * one, settings, model) == 16
    with pytest.raises(ValueError, match="one sequence needs"):
        command.rows_within(one - 1, settings, model)
