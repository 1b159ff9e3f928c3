# SPDX-License-Identifier: Apache-2.0
"""Losses of a checkpoint on its validation and test data; nothing is trained or saved.

mindspeed-ms evaluate --load output/my_run
mpiexec -n 2 mindspeed-ms evaluate --load output/my_run --tensor-model-parallel-size 2
mindspeed-ms evaluate --load MODEL --data-path DATA --micro-batch-size 4 --seq-length 2048 ...

A checkpoint of this project says which data its run had; flags, or a YAML file, say otherwise. Of
others the model is known only. The layout is what the flags say, whatever that of the run was. All
other flags are those of training: mindspeed-ms train --help.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mindspeed_ms.command import train
from mindspeed_ms.config.beside import located_from_checkpoint
from mindspeed_ms.files.whole import temporary_folder
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.toolkit.launch.command import Parser
from mindspeed_ms.training.checkpoint_config import MODEL_SECTIONS, spec_of
from mindspeed_ms.training.entry import user_errors

WITHOUT_TRAINING = (
    "--skip-train",
    "--no-load-optim",
    "--no-load-rng",
    "--finetune",
    "--exit-on-missing-checkpoint",
)
_OF_THE_RUN = ("seed", "eval_iters", "global_batch_size")
"""Fields of the training section that say how a run evaluates."""

_OF_THE_LAYOUT = ("num_layer_list", "recompute_config", "recompute")


def sections_of(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a checkpoint's configuration that an evaluation needs."""
    kept = {name: dict(stated[name]) for name in MODEL_SECTIONS if name in stated}
    kept["dataset_config"] = dict(stated.get("dataset_config") or {})
    training = stated.get("training_config") or {}
    kept["training_config"] = {name: training[name] for name in _OF_THE_RUN if training.get(name)}
    kept["training_config"] |= {"training_iters": 1, "save_checkpoints": False}
    for section in kept.values():
        for name in _OF_THE_LAYOUT:
            section.pop(name, None)
    return kept


def words_for(load: str, step: int | None, rest: Sequence[str], folder: Path) -> list[str]:
    """The command line of the run that only evaluates.

    Args:
        load: folder of the checkpoint.
        step: its iteration; None: the newest.
        rest: the user's flags.
        folder: for a file.

    Raises:
        ValueError: there is no checkpoint.
    """
    found = find_checkpoint(Path(load), step)
    if found is None:
        raise ValueError(f"{load} holds no checkpoint; correct --load")
    words = ["--load", load, *WITHOUT_TRAINING]
    words += [] if step is None else ["--ckpt-step", str(step)]
    stated = open_checkpoint(found, spec_of).common.get("config")
    if {"--yaml", "--yaml-cfg", "--yaml_cfg"} & set(rest):
        return [*words, *rest]
    if stated is None:
        return [*words, "--use-checkpoint-args", "--train-iters", "1", *rest]
    path = folder / "of_checkpoint.yaml"
    sections = sections_of(stated)
    sections["dataset_config"] |= located_from_checkpoint(sections["dataset_config"], Path(load))
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return ["--yaml", str(path), "--log-style", "megatron", *words, *rest]


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; return the status."""
    parser = Parser.of(__doc__)
    parser.add_argument("--load", required=True, help="folder of the checkpoint")
    parser.add_argument("--ckpt-step", type=int, help="its iteration; default the newest")
    given, rest = parser.parse_known_args(argv)
    with temporary_folder("evaluate") as folder:
        with user_errors():
            sys.argv[1:] = words_for(given.load, given.ckpt_step, rest, folder)
        train.main()
    return 0
