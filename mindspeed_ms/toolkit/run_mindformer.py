# SPDX-License-Identifier: Apache-2.0
"""The command of ``run_mindformer.py``: a configuration in MindFormers' style, and flags over it.

python run_mindformer.py --config configs/gpt2/run_gpt2.yaml --run_mode train --dataset_dir DATA

Settings go from the weakest to the strongest: defaults of the model's class, files of
``base_config``, the file itself, training arguments, ``--options a.b=value``, flags, and what a
script sets with ``set_parallel_config`` and ``set_recompute_config``. Every flag can be given as an
environment variable ``MINDSPEED_MS_<FLAG>`` too; a flag on the command line wins.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.backend import device, env
    from mindspeed_ms.config.section import suggestion
    from mindspeed_ms.files.regular_file import real_path
    from mindspeed_ms.files.shipped import SHIPPED
    from mindspeed_ms.toolkit.launch.command import Parser
    from mindspeed_ms.toolkit.mapping.precedence import resolve
    from mindspeed_ms.toolkit.mapping.tree import TABLE, Task, read_task
    from mindspeed_ms.toolkit.paths import localize, require_local, usable
    from mindspeed_ms.toolkit.run import this_world
    from mindspeed_ms.toolkit.trainer import run_task
    from mindspeed_ms.toolkit.yaml_config import Tree, load_layers, parse_bool, parse_value, tree_of
    from mindspeed_ms.training.entry import user_errors
    from mindspeed_ms.training.flags.value_types import decimal, whole

FLAGS: Mapping[str, tuple[Callable[[str], Any], str, str]] = {
    "run_mode": (str, "run_mode", "train, finetune, eval or predict"),
    "use_parallel": (parse_bool, "use_parallel", "several ranks share the work"),
    "train_dataset_dir": (str, "train_dataset.data_loader.dataset_dir", "training data"),
    "eval_dataset_dir": (str, "eval_dataset.data_loader.dataset_dir", "evaluation data"),
    "load_checkpoint": (str, "load_checkpoint", "weights to start from"),
    "resume_training": (parse_value, "resume_training", "go on with the run in load_checkpoint"),
    "auto_trans_ckpt": (parse_bool, "auto_trans_ckpt", "every layout is read anyway"),
    "src_strategy_path_or_dir": (str, "src_strategy_path_or_dir", "not needed"),
    "transform_process_num": (int, "transform_process_num", "not needed"),
    "only_save_strategy": (parse_bool, "only_save_strategy", "refused: there are no strategies"),
    "strategy_load_checkpoint": (str, "parallel.strategy_ckpt_load_file", "not needed"),
    "remote_save_url": (str, "remote_save_url", "without effect: nothing is uploaded"),
    "seed": (int, "seed", "start of all random streams"),
    "device_id": (int, "context.device_id", "device of a single rank"),
    "device_target": (str, "context.device_target", "Ascend or CPU"),
    "mode": (int, "context.mode", "0 graph, 1 dynamic graph; the dynamic one is used"),
    "do_eval": (parse_bool, "do_eval", "evaluate while training"),
    "profile": (parse_bool, "profile", "record a profile"),
    "epochs": (float, "runner_config.epochs", "passes over the training data"),
    "batch_size": (int, "runner_config.batch_size", "sequences of a micro-batch on one rank"),
    "gradient_accumulation_steps": (
        int,
        "runner_config.gradient_accumulation_steps",
        "micro-batches added up before a step",
    ),
    "sink_mode": (parse_bool, "runner_config.sink_mode", "without effect"),
    "num_samples": (int, "train_dataset.data_loader.num_samples", "rows of the data in use"),
    "predict_batch_size": (int, "predict_batch_size", "texts at a time"),
    "output_dir": (str, "output_dir", "folder of checkpoints and logs"),
}
"""Flag -> type, key of the file, what it is for."""

DATA_FLAGS = ("dataset_dir", "dataset")
"""Other names of the data: of ``--run_mode``'s kind; a cloud job's input folder."""


def parser() -> Parser:
    """The parser of the command line."""
    command = Parser(
        prog="run_mindformer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--config", required=True, metavar="FILE", help="configuration file")
    for name, (kind, _, purpose) in FLAGS.items():
        command.add_argument(f"--{name}", type=_typed(kind), metavar="VALUE", help=purpose)
    command.add_argument("--dataset_dir", metavar="PATH", help="data of the run mode")
    command.add_argument("--dataset", metavar="PATH", help="a cloud job's input folder")
    command.add_argument("--dataset_id", metavar="NAME", help="folder or file within --dataset")
    command.add_argument("--predict_data", nargs="+", metavar="TEXT", help="texts to go on with")
    command.add_argument("--options", nargs="+", metavar="a.b=value", help="keys of the file")
    command.add_argument("--register_path", metavar="FOLDER", help="folder of modules of one's own")
    return command


_NUMBERS: Mapping[Any, Callable[[str], Any]] = MappingProxyType({int: whole, float: decimal})


def _typed(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:  # noqa: ANN401
        try:
            return _NUMBERS.get(kind, kind)(text)
        except ValueError as error:
            reason = str(error) if kind is parse_bool else f"must be a number, not {text!r}"
            raise argparse.ArgumentTypeError(reason) from None

    return read


def read_words(words: Sequence[str]) -> tuple[Path, Tree, Tree]:
    """The file, its layers above it: options, and flags.

    Raises:
        ValueError: a word that cannot be understood.
        SystemExit: the same, of a declared flag, after one line.
    """
    given, rest = parser().parse_known_args(_with_environment(words))
    config = _config_file(given.config)
    flags = {
        path: getattr(given, name)
        for name, (_, path, _) in FLAGS.items()
        if getattr(given, name) is not None
    }
    mode = flags.get("run_mode")
    kind = "eval" if mode == "eval" else "train"
    data = given.dataset_dir or _input_folder(given.dataset, given.dataset_id)
    if data:
        flags.setdefault(f"{kind}_dataset.data_loader.dataset_dir", data)
    if given.predict_data:
        flags["input_data"] = [text.replace("\\n", "\n") for text in given.predict_data]
    if given.num_samples is not None:
        flags["eval_dataset.data_loader.num_samples"] = given.num_samples
    if given.register_path:
        sys.path.insert(0, str(real_path(usable(given.register_path))))
    options = _options([*(given.options or []), *_joined(rest)])
    return config, tree_of(options), tree_of(flags)


def _with_environment(words: Sequence[str]) -> list[str]:
    """The words, with flags in front of them that environment variables state."""
    known = ["dataset_dir", "dataset", "dataset_id", *FLAGS]
    stated = []
    for name in known:
        variable = f"MINDSPEED_MS_{name.upper()}"
        value = env.get(variable)
        if value and variable != device.TARGET_VARIABLE:
            stated += [f"--{name}", value]
    return [*stated, *words]


def _config_file(name: str) -> Path:
    """The configuration: as named, else as the package brings it."""
    require_local(name, "--config")
    for path in (Path(usable(name)), Path(name), SHIPPED / name):
        if path.is_file():
            return path
    raise ValueError(f"--config {name}: there is no such file; check the path")


def _input_folder(folder: str | None, name: str | None) -> str | None:
    if folder is None:
        if name is not None:
            raise ValueError(f"--dataset_id {name} needs --dataset, the folder it is in")
        return None
    require_local(folder, "--dataset")
    if name is None:
        return folder
    path = Path(usable(folder)) / name
    if not path.exists():
        raise ValueError(f"--dataset_id {name}: there is no {path}; check both")
    return str(path)


def _joined(rest: Sequence[str]) -> list[str]:
    """``--a.b value`` and ``--a.b=value``, keys of the file given as flags, as ``a.b=value``."""
    texts, position = [], 0
    while position < len(rest):
        word = rest[position]
        name, has_value, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name.split(".")[0] not in TABLE:
            known = [f"--{flag}" for flag in (*FLAGS, *DATA_FLAGS, *TABLE)]
            raise ValueError(f"{word!r} is no flag{suggestion(f'--{name}', known)}; see --help")
        position += 1
        if not has_value:
            if position == len(rest) or rest[position].startswith("--"):
                raise ValueError(f"--{name} needs a value")
            value = rest[position]
            position += 1
        texts.append(f"{name}={value}")
    return texts


def _options(texts: Sequence[str]) -> dict[str, Any]:
    values = {}
    for text in texts:
        name, has_value, value = text.partition("=")
        if not has_value or not name:
            raise ValueError(f"--options {text!r}: write key=value, e.g. runner_config.epochs=2")
        values[name] = parse_value(value)
    return values


def make_task(words: Sequence[str]) -> Task:
    """The task that a command line asks for.

    Raises:
        ValueError: settings that cannot be used.
    """
    config, options, flags = read_words(words)
    base, run_file = load_layers(config)
    tree = resolve(base_config=base, run_file=run_file, options=options, flags=flags)
    return read_task(localize(tree), this_world())


def main(words: Sequence[str] | None = None) -> int:
    """Run the task of a command line; return the exit status."""
    with user_errors():
        task = make_task(sys.argv[1:] if words is None else words)
        run_task(task)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
