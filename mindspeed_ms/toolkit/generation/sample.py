# SPDX-License-Identifier: Apache-2.0
"""One token after the other: the best, or one drawn. Legend: b rows, s tokens, v vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.core.inference import sampling
from mindspeed_ms.core.inference.drafts import Drafts
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.core.inference.logits_processors import LogitsProcessor, Scores, log_softmax
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.generation.inputs import Prompts
from mindspeed_ms.toolkit.generation.output import GenerateOutput, tensor_of
from mindspeed_ms.toolkit.generation.rules import Stopping, chosen, processed
from mindspeed_ms.toolkit.generation.streamers import BaseStreamer


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a generation works with."""

    engine: InferenceEngine
    prompts: Prompts
    config: GenerationConfig
    processors: Sequence[LogitsProcessor]
    row_processors: Callable[[int], Sequence[LogitsProcessor]]
    """Those of a prompt by number, for rows that go on at their own pace."""
    stopping: Stopping
    pad: int | None
    seed: int
    streamer: BaseStreamer | None = None
    drafts: Drafts | None = None
    """Who proposes tokens, if somebody does."""

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompts, padding counted."""
        return self.prompts.ids.shape[1]

    @property
    def wants_scores(self) -> bool:
        """Whether every row of every step is kept."""
        config = self.config
        return config.return_dict_in_generate and (config.output_scores or config.output_logits)

    def begin(self, copies: int) -> tuple[NDArray[np.int64], Scores]:
        """Slots [b * copies] that hold the prompts, and the logits behind them."""
        slots, logits = self.engine.add([row.tolist() for row in self.prompts.rows])
        if copies == 1:
            return slots, logits
        return self.engine.cache.fork(slots, copies), np.repeat(logits, copies, axis=0)

    def go_on(
        self, slots: NDArray[np.int64], rows: NDArray[np.int64], ids: NDArray[np.int64]
    ) -> Scores:
        """Logits behind the last token of some rows, whose prompts are known by number.

        Args:
            slots: [b].
            rows: [b], number of each row's prompt.
            ids: [b, s], all tokens.
        """
        if self.config.use_cache:
            return self.engine.step(slots, ids[:, -1])
        self.engine.cache.truncate(slots, 0)
        new = ids[:, self.prompt_length :]
        prompts = self.prompts.rows
        whole = [np.concatenate([prompts[row], tail]) for row, tail in zip(rows, new, strict=True)]
        return self.engine.extend(slots, [row.tolist() for row in whole])


@dataclass(slots=True)
class _Kept:
    """Members of a ``GenerateOutput``, step by step."""

    scores: list[Scores]
    logits: list[Scores]
    logprobs: list[Scores]


def sample(task: Task) -> GenerateOutput:
    """Sequences of which each token is the best, or drawn, after those before.

    Source: ``transformers`` ``_sample`` (order of operations, padding of rows that ended).
    """
    config = task.config
    copies = config.num_return_sequences
    slots, logits = task.begin(copies)
    owners = np.repeat(np.arange(len(task.prompts.ids)), copies)
    ids = task.prompts.ids[owners]
    names = sampling.stream_names([row.tolist() for row in task.prompts.rows], copies)
    runs = np.ones(len(ids), bool)
    kept = _Kept([], [], [])
    if task.streamer is not None:
        task.streamer.put(task.prompts.ids)
    while True:
        scores = processed(task.processors, ids, logits)
        goes_on = runs if task.pad is not None else np.ones_like(runs)
        tokens = _choose(scores, goes_on, task, names, ids.shape[1] - task.prompt_length)
        _keep(kept, task, scores, logits, np.where(runs, tokens, -1))
        if task.pad is not None:
            tokens = np.where(runs, tokens, task.pad)
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        if task.streamer is not None:
            task.streamer.put(tokens)
        runs = runs & ~task.stopping(ids, scores)
        if not runs.any():
            break
        active = runs if task.pad is not None and not task.wants_scores else np.ones_like(runs)
        logits = logits.copy()  # those of the last step may be kept, or lie in a buffer
        logits[active] = task.go_on(slots[active], owners[active], ids[active])
    if task.streamer is not None:
        task.streamer.end()
    return _output(kept, config, ids)


def _choose(
    scores: Scores, runs: NDArray[np.bool_], task: Task, names: NDArray[np.uint64], step: int
) -> NDArray[np.int64]:
    """A token of each row; those of rows that ended mean nothing."""
    tokens = np.zeros(len(scores), np.int64)
    tokens[runs] = chosen(scores[runs], task.config, task.seed, names[runs], step)
    return tokens


def _keep(
    kept: _Kept, task: Task, scores: Scores, logits: Scores, tokens: NDArray[np.int64]
) -> None:
    config = task.config
    if not config.return_dict_in_generate:
        return
    logs = np.take_along_axis(log_softmax(logits), np.maximum(tokens, 0)[:, None], axis=1)[:, 0]
    kept.logprobs.append(np.where(tokens < 0, np.float32(0.0), logs))
    if config.output_scores:
        kept.scores.append(scores.copy())
    if config.output_logits:
        kept.logits.append(logits.copy())


def _output(kept: _Kept, config: GenerationConfig, ids: NDArray[np.int64]) -> GenerateOutput:
    output = GenerateOutput(tensor_of(ids, np.int32))
    if config.return_dict_in_generate:
        output.logprobs = tensor_of(np.stack(kept.logprobs, axis=1))
        output.scores = tuple(map(tensor_of, kept.scores)) if config.output_scores else None
        output.logits = tuple(map(tensor_of, kept.logits)) if config.output_logits else None
    return output
