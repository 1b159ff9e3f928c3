# SPDX-License-Identifier: Apache-2.0
"""Lengths in tokens, and a file that ends a run: words of Megatron-DeepSpeed's launch scripts.

Sequences keep their length, so that so many tokens are so many samples or steps: of the run, the
first step that reaches them is the last one; of the learning rate, parts are rounded up.

Source: Megatron-DeepSpeed ``megatron/{training,learning_rates}.py`` of BigScience (behaviour).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms.training.flags.row import UNSET, Field, Flag, in_group, value


def _samples(tokens: int, given: Any) -> int:
    if not given.seq_length:
        raise ValueError("lengths in tokens need the length of a sample; give --seq-length")
    return -(-tokens // given.seq_length)


def _steps(tokens: int, given: Any) -> int:
    if not given.global_batch_size or given.rampup_batch_size:
        raise ValueError(
            "lengths in tokens and --train-iters need a batch of one known size; give "
            "--global-batch-size without --rampup-batch-size, or --train-samples"
        )
    return -(-_samples(tokens, given) // given.global_batch_size)


def _earlier(stated: Any, own: int) -> int:
    return own if stated is UNSET or stated is None else min(stated, own)


def _train_iters(stated: Any, given: Any) -> Any:
    if not given.train_tokens or not given.train_iters:
        return stated
    return _earlier(stated, _steps(given.train_tokens, given))


def _train_samples(stated: Any, given: Any) -> Any:
    if not given.train_tokens or given.train_iters:
        return stated
    batch = given.global_batch_size or 1
    whole = -(-_samples(given.train_tokens, given) // batch) * batch
    return _earlier(stated, whole)


def _of_rate(name: str, *, is_iters: bool) -> Callable[[Any, Any], Any]:
    """Rule of a part of the learning rate's way, in iterations or in samples."""

    def rule(stated: Any, given: Any) -> Any:
        tokens = getattr(given, name)
        if not tokens:
            return stated
        if bool(given.train_iters) is not is_iters:
            return UNSET  # the tokens speak, in the other field
        return _steps(tokens, given) if is_iters else _samples(tokens, given)

    return rule


TOKEN_RULES: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "training_config.training_iters": _train_iters,
        "training_config.train_samples": _train_samples,
        "optimizer_config.lr_decay_iters": _of_rate("lr_decay_tokens", is_iters=True),
        "optimizer_config.lr_decay_samples": _of_rate("lr_decay_tokens", is_iters=False),
        "optimizer_config.lr_warmup_iters": _of_rate("lr_warmup_tokens", is_iters=True),
        "optimizer_config.lr_warmup_samples": _of_rate("lr_warmup_tokens", is_iters=False),
    }
)
"""Field -> its rule, which gets what flags state about it, and all arguments."""

ROWS: tuple[Flag, ...] = in_group(
    "names of forks",
    [
        value(
            "--train-tokens",
            int,
            Field(
                "training_config.train_samples",
                by_rule=True,
                also=("training_config.training_iters",),
            ),
            small=None,
            help="End with the step that has trained on so many tokens, if --train-samples or "
            "--train-iters do not end it before.",
        ),
        value(
            "--lr-decay-tokens",
            int,
            Field(
                "optimizer_config.lr_decay_samples",
                by_rule=True,
                also=("optimizer_config.lr_decay_iters",),
            ),
            small=None,
            help="Tokens until --min-lr, in whole samples or steps.",
        ),
        value(
            "--lr-warmup-tokens",
            int,
            Field(
                "optimizer_config.lr_warmup_samples",
                by_rule=True,
                also=("optimizer_config.lr_warmup_iters",),
            ),
            small=None,
            help="Tokens of linear warm-up, in whole samples or steps.",
        ),
        value(
            "--kill-switch-path",
            str,
            Field("training_config.kill_switch_path"),
            small=None,
        ),
    ],
)
"""Every one of them."""
