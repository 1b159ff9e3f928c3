# SPDX-License-Identifier: Apache-2.0
"""What a word that is no flag was meant to be: other projects' names, and the nearest spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from mindspeed_ms.training.flags.row import EntryPoint, Field, Flag

_FOLLOWS = "{} follows from the number of ranks; start as many, or plan with --world-size"

SYNONYMS: Mapping[str, str] = MappingProxyType(
    {
        # length and batches
        "epochs": "--train-iters",
        "num-epochs": "--train-iters",
        "num-train-epochs": "--train-iters",
        "max-steps": "--train-iters",
        "max-iters": "--train-iters",
        "steps": "--train-iters",
        "num-steps": "--train-iters",
        "total-steps": "--train-iters",
        "train-steps": "--train-iters",
        "training-steps": "--train-iters",
        "iterations": "--train-iters",
        "iters": "--train-iters",
        "train-iterations": "--train-iters",
        "training-iters": "--train-iters",
        "batch": "--micro-batch-size",
        "batch-size": "--micro-batch-size or --global-batch-size",
        "bs": "--micro-batch-size or --global-batch-size",
        "mbs": "--micro-batch-size",
        "gbs": "--global-batch-size",
        "train-batch-size": "--global-batch-size",
        "total-batch-size": "--global-batch-size",
        "per-device-train-batch-size": "--micro-batch-size",
        "device-batch-size": "--micro-batch-size",
        "gradient-accumulation-steps": "--global-batch-size, which with --micro-batch-size says it",
        "grad-accum": "--global-batch-size, which with --micro-batch-size says it",
        "grad-accum-steps": "--global-batch-size, which with --micro-batch-size says it",
        "accumulation-steps": "--global-batch-size, which with --micro-batch-size says it",
        "num-microbatches": "--global-batch-size, which with --micro-batch-size says it",
        # optimizer
        "learning-rate": "--lr",
        "lr-rate": "--lr",
        "base-lr": "--lr",
        "max-lr": "--lr",
        "peak-lr": "--lr",
        "min-learning-rate": "--min-lr",
        "lr-min": "--min-lr",
        "warmup": "--lr-warmup-iters",
        "warmup-steps": "--lr-warmup-iters",
        "warmup-iters": "--lr-warmup-iters",
        "num-warmup-steps": "--lr-warmup-iters",
        "lr-warmup-steps": "--lr-warmup-iters",
        "warmup-ratio": "--lr-warmup-fraction",
        "lr-scheduler": "--lr-decay-style",
        "lr-scheduler-type": "--lr-decay-style",
        "lr-schedule": "--lr-decay-style",
        "scheduler": "--lr-decay-style",
        "wd": "--weight-decay",
        "decay": "--weight-decay",
        "max-grad-norm": "--clip-grad",
        "grad-clip": "--clip-grad",
        "gradient-clipping": "--clip-grad",
        "gradient-clip-val": "--clip-grad",
        "beta1": "--adam-beta1",
        "beta2": "--adam-beta2",
        "adam-epsilon": "--adam-eps",
        "epsilon": "--adam-eps",
        "optim": "--optimizer",
        "optimizer-type": "--optimizer",
        "dropout": "--hidden-dropout and --attention-dropout",
        # model
        "seq-len": "--seq-length",
        "seqlen": "--seq-length",
        "seq": "--seq-length",
        "sequence-length": "--seq-length",
        "max-seq-len": "--seq-length",
        "max-seq-length": "--seq-length",
        "max-length": "--seq-length",
        "context-length": "--seq-length",
        "block-size": "--seq-length",
        "layers": "--num-layers",
        "n-layers": "--num-layers",
        "n-layer": "--num-layers",
        "num-hidden-layers": "--num-layers",
        "depth": "--num-layers",
        "hidden": "--hidden-size",
        "hidden-dim": "--hidden-size",
        "dim": "--hidden-size",
        "d-model": "--hidden-size",
        "n-embd": "--hidden-size",
        "heads": "--num-attention-heads",
        "n-heads": "--num-attention-heads",
        "n-head": "--num-attention-heads",
        "num-heads": "--num-attention-heads",
        "kv-heads": "--num-query-groups",
        "n-kv-heads": "--num-query-groups",
        "num-kv-heads": "--num-query-groups",
        "head-dim": "--kv-channels",
        "intermediate-size": "--ffn-hidden-size",
        "ffn-size": "--ffn-hidden-size",
        "activation": "--hidden-act",
        "rope-theta": "--rotary-base",
        "rope": "--position-embedding-type rope",
        "rms-norm-eps": "--norm-epsilon",
        "layer-norm-eps": "--norm-epsilon",
        "tie-word-embeddings": "--untie-embeddings-and-output-weights, which is the opposite",
        "vocab": "--vocab-size",
        # precision and memory
        "precision": "--bf16 or --fp16",
        "dtype": "--bf16 or --fp16",
        "mixed-precision": "--bf16 or --fp16",
        "fp32": "neither --bf16 nor --fp16: float32 is the default",
        "fp8": "8-bit arithmetic is not available; use --bf16",
        "flash-attn": "the attention kernel is chosen at start, no flag is needed",
        "flash-attention": "the attention kernel is chosen at start, no flag is needed",
        "gradient-checkpointing": "--recompute-granularity",
        "activation-checkpointing": "--recompute-granularity",
        "zero": "--zero-level",
        "fsdp": "--zero-level",
        # layout
        "tp": "--tensor-model-parallel-size",
        "tp-size": "--tensor-model-parallel-size",
        "tensor-parallel": "--tensor-model-parallel-size",
        "tensor-parallel-size": "--tensor-model-parallel-size",
        "model-parallel-size": "--tensor-model-parallel-size",
        "pp": "--pipeline-model-parallel-size",
        "pp-size": "--pipeline-model-parallel-size",
        "pipeline-parallel": "--pipeline-model-parallel-size",
        "pipeline-parallel-size": "--pipeline-model-parallel-size",
        "vpp": "--num-layers-per-virtual-pipeline-stage",
        "cp": "--context-parallel-size",
        "cp-size": "--context-parallel-size",
        "ep": "--expert-model-parallel-size",
        "ep-size": "--expert-model-parallel-size",
        "expert-parallel-size": "--expert-model-parallel-size",
        "sp": "--sequence-parallel",
        "dp": _FOLLOWS.format("the data-parallel size"),
        "dp-size": _FOLLOWS.format("the data-parallel size"),
        "data-parallel": _FOLLOWS.format("the data-parallel size"),
        "data-parallel-size": _FOLLOWS.format("the data-parallel size"),
        "num-gpus": _FOLLOWS.format("the number of devices"),
        "gpus": _FOLLOWS.format("the number of devices"),
        "nproc-per-node": "the launcher's own option, in front of the script",
        # data and files
        "data": "--data-path",
        "data-dir": "--data-path",
        "dataset": "--data-path",
        "dataset-path": "--data-path",
        "train-data": "--data-path or --train-data-path",
        "train-file": "--data-path or --train-data-path",
        "tokenizer": "--tokenizer-type and --tokenizer-model",
        "workers": "--num-workers",
        "dataloader-num-workers": "--num-workers",
        "output": "--save",
        "output-dir": "--save",
        "save-dir": "--save",
        "save-path": "--save",
        "checkpoint-dir": "--save or --load",
        "ckpt": "--save or --load",
        "ckpt-path": "--load",
        "load-path": "--load",
        "resume": "--load",
        "resume-from-checkpoint": "--load",
        "pretrained": "--load with --finetune",
        "save-steps": "--save-interval",
        "save-every": "--save-interval",
        "checkpoint-interval": "--save-interval",
        "logging-steps": "--log-interval",
        "log-every": "--log-interval",
        "log-steps": "--log-interval",
        "eval-steps": "--eval-interval",
        "eval-every": "--eval-interval",
        # the program
        "config-file": "--yaml",
        "cfg": "--yaml",
        "random-seed": "--seed",
        "verbose": "--logging-level 10",
        "debug": "--logging-level 10",
        "mock": "--mock-data",
        "plan": "--dry-run",
    }
)
"""Name elsewhere, without dashes in front -> what to write here."""


def acts(row: Flag) -> bool:
    """Whether a flag changes anything."""
    match row.state:
        case Field(without_effect=no_effect, unavailable=refused):
            return no_effect is None and refused is None
        case EntryPoint():
            return True
    return False


def _use(meant: str) -> str:
    return f"use {meant}" if meant.startswith("--") else meant


def unknown_flag_message(word: str, rows: Iterable[Flag], others: Iterable[str]) -> str:
    """Return the message for a word that is no flag.

    Names of other projects are translated; else the nearest flag that acts is named.

    Args:
        word: what was given.
        rows: the table.
        others: further flags the parser knows: the user's own.

    """
    if word.endswith((".yaml", ".yml")):
        return f"unexpected word {word[:100]!r}; a configuration file is given with --yaml"
    if not word.startswith("-"):
        return f"unexpected word {word[:100]!r}; values follow the flag they belong to"
    name = word.partition("=")[0][:100]
    bare = name.lstrip("-").replace("_", "-").lower()
    if bare in SYNONYMS:
        return f"unknown flag {name}; {_use(SYNONYMS[bare])}"
    known = [row.names[0] for row in rows if acts(row)]
    known += [other for other in others if other.startswith("--")]
    shown = {flag.replace("_", "-").lower(): flag for flag in reversed(known)}
    dashed = f"--{bare}"
    longer = sorted(flag for flag in shown if flag.startswith(dashed)) if len(bare) > 2 else []
    if longer:
        names = " or ".join(shown[flag] for flag in longer[:3])
        return f"unknown flag {name}; abbreviations are not accepted, write {names}"
    meant = {f"--{other}": text for other, text in SYNONYMS.items()}
    foreign = difflib.get_close_matches(dashed, meant, n=1, cutoff=0.8)
    close = difflib.get_close_matches(dashed, [*shown, *foreign], n=1, cutoff=0.7)
    if close and close[0] in shown:
        return f"unknown flag {name}; did you mean {shown[close[0]]}?"
    if close:
        return f"unknown flag {name}; {_use(meant[close[0]])}"
    idle = [row.names[0] for row in rows if not acts(row)]
    close = difflib.get_close_matches(dashed, idle, n=1, cutoff=0.9)
    if close:
        return f"unknown flag {name}; did you mean {close[0]}, which changes nothing here?"
    return f"unknown flag {name}; --help shows the usual flags, --help-all every flag"
