# SPDX-License-Identifier: Apache-2.0
"""From the first words of ``mindspeed-ms`` to the module that does the work.

Only that module is imported: help comes at once, and who converts a checkpoint needs no MindSpore.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import mindspeed_ms
from mindspeed_ms.interrupts import plain_interrupts
from mindspeed_ms.toolkit.launch.command import USER_ERROR_STATUS
from mindspeed_ms.training import reader

PROGRAM = "mindspeed-ms"

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "train": ("train:main", "train a model: Megatron's flags, or YAML files"),
        "plan": ("train:plan", "what a run would need: layout, memory, traffic, time; starts none"),
        "evaluate": ("evaluate:main", "losses of a checkpoint on its validation and test data"),
        "generate": ("generate:main", "go on with a text, from a checkpoint of any format"),
        "serve": ("mindspeed_ms.toolkit.serve.command:main", "answer over HTTP, as OpenAI's does"),
        "preprocess": ("preprocess:main", "turn text into the token files that training reads"),
        "tokenizer": ("tokenizer:main", "train a tokenizer on text of your own"),
        "convert": ("convert:main", "convert, inspect or compare checkpoints"),
        "plot": ("plot:main", "draw the loss of runs, from their folders or logs"),
        "report": ("report:main", "one HTML file about one or several runs"),
        "parity": ("parity:main", "compare with a recorded run of Megatron's"),
        "compare-layouts": (
            "compare_layouts:main",
            "train in several layouts and compare",
        ),
        "configs": ("configs:main", "list, show or copy the configurations that come with this"),
        "doctor": ("doctor:main", "check compiler, kernels, MPI, launcher, memory, disk, NPU"),
        "completion": ("completion:main", "print a completion script for bash, zsh or fish"),
    }
)
"""Sub-command -> module, of this room or with its full name, with its function; what it does."""


def help_text() -> str:
    """The list of sub-commands."""
    lines = [
        f"usage: {PROGRAM} COMMAND [flags]",
        "",
        "Megatron-LM's training, native on MindSpore's dynamic graph.",
        "",
        *(f"  {name:<16} {summary}" for name, (_, summary) in COMMANDS.items()),
        "",
        f"{PROGRAM} COMMAND --help tells the flags of one. Several ranks:",
        f"  mpiexec -n 4 {PROGRAM} train --yaml tiny_gpt.yaml",
        f"  mindspeed-torchrun --nproc-per-node 4 -m {__package__} train --yaml tiny_gpt.yaml",
    ]
    return "\n".join(lines) + "\n"


def unknown_text(word: str) -> str:
    """What somebody is told who names no sub-command."""
    close = difflib.get_close_matches(word.lower().replace("_", "-"), COMMANDS, n=1, cutoff=0.6)
    meant = f"did you mean {close[0]}?" if close else f"use one of {', '.join(COMMANDS)}"
    return f"{PROGRAM}: error: there is no command {word[:100]!r}; {meant}\n"


def run(name: str, words: Sequence[str]) -> int:
    """Carry out a sub-command; return its status.

    Args:
        name: of the sub-command.
        words: after it.
    """
    module, _, function = COMMANDS[name][0].partition(":")
    sys.argv = [f"{PROGRAM} {name}", *words]  # what the front of training, and messages, read
    gc.disable()  # while modules load: the collector finds nothing and takes its time
    with plain_interrupts():
        loaded = importlib.import_module(module if "." in module else f"{__package__}.{module}")
    gc.enable()
    gc.freeze()  # modules stay: later collections need not look at them
    return getattr(loaded, function)() or 0


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the status."""
    words = sys.argv[1:] if words is None else list(words)
    if words[:1] == ["help"] and len(words) > 1:  # help COMMAND is COMMAND --help
        words = [words[1], "--help"]
    with reader.may_leave():
        return _answer(words)


def _answer(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(help_text())
        return 0 if words else USER_ERROR_STATUS
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"{PROGRAM} {mindspeed_ms.__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        sys.stderr.write(unknown_text(words[0]))
        return USER_ERROR_STATUS
    return run(words[0], words[1:])
