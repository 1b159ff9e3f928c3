# SPDX-License-Identifier: Apache-2.0
"""Small runs for tests of what a run leaves behind, on one rank and on several."""

from __future__ import annotations

import logging
import os
import random
import signal
import tempfile
import threading
from pathlib import Path

import numpy as np
import pipeline_runs
from pipeline_runs import provider

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state, run_state
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.run import Run, StepFunctions
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.from_args import init_configs_from_args


def configuration(*flags, style="llama"):
    """The configuration of Megatron's flags, without initializing anything."""
    comm.init_process_group()
    base = list(pipeline_runs.BASE)
    if "--train-samples" in flags:
        at = base.index("--train-iters")
        del base[at : at + 2]
    words = [*base, *pipeline_runs.STYLES[style], *flags]
    args = validate_args(parse_args(words), comm.get_world_size())
    return init_configs_from_args(args)


class Numbered:
    """Samples by number, for Megatron's datasets provider."""

    def __init__(self, length, seq_length):
        self._length, self._seq_length = length, seq_length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return pipeline_runs.sample(index, self._seq_length)


def datasets(num_samples):
    """Train, validation and test samples where this rank reads."""
    length = get_all_config().model_config.seq_length
    return tuple(Numbered(max(count or 0, 8), length) for count in num_samples)


def open_run(*flags, style="llama", on_step=None, model_provider=provider):
    """An open run and the list that its losses and gradient norms go to."""
    steps = []

    def note(step):
        steps.append((step.losses["lm loss"], step.grad_norm))
        if on_step is not None:
            on_step(step)

    run = Run(
        configuration(*flags, style=style),
        model_provider,
        datasets,
        functions=StepFunctions(on_step=note),
    )
    return run, steps


def trained(*flags, style="llama", on_step=None):
    """Losses and gradient norms of a whole run, which is closed."""
    run, steps = open_run(*flags, style=style, on_step=on_step)
    with run:
        run.train()
    return steps


def traces():
    """What a run could leave behind in this process."""
    loggers = [logging.getLogger(name) for name in ("mindspeed_ms", "mindspeed_ms.lines")]
    numbers = np.random.get_state()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)},
        "loggers": [(log.level, log.propagate, list(log.handlers)) for log in loggers],
        "state": (id(run_state.current()), dict(run_state.current()._members)),
        "groups": parallel_state.model_parallel_is_initialized(),
        "python": random.getstate(),
        "numpy": (numbers[1].tolist(), *numbers[2:]),
        "files": sorted(path.name for path in Path(tempfile.gettempdir()).iterdir()),
        "folder": os.getcwd(),
    }
