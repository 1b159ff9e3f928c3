# SPDX-License-Identifier: Apache-2.0
"""The toolkit's command: settings from a YAML file, and words over them.

python -m mindspeed_ms.toolkit.run --config F.yaml --epoch_size=2 --train_data_path=DATA

Without ``--config``, ``--auto_model=gpt`` names the preset. Scripts of one's own call
``run_train(parse(sys.argv[1:]))``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.backend import launch, rank_table
    from mindspeed_ms.config import AllConfig
    from mindspeed_ms.engine.train_loop import TrainState
    from mindspeed_ms.toolkit import registry
    from mindspeed_ms.toolkit.mapping import model as models
    from mindspeed_ms.toolkit.mapping import options as toolkit_options
    from mindspeed_ms.toolkit.mapping.parallel import World
    from mindspeed_ms.toolkit.mapping.tree import canonical, read_task
    from mindspeed_ms.toolkit.messages import unknown_name
    from mindspeed_ms.toolkit.paths import localize
    from mindspeed_ms.toolkit.trainer import run_task
    from mindspeed_ms.toolkit.yaml_config import PRESETS, Options, parse
    from mindspeed_ms.training.entry import user_errors

__all__ = ["Options", "main", "parse", "run_train"]

DEFAULT_FILE = "gpt_base.yaml"
"""Settings of a model of one's own, where no file is named."""


def main(words: Sequence[str] | None = None) -> int:
    """Read the words, show where each value comes from, train; return the exit status."""
    given = sys.argv[1:] if words is None else list(words)
    if "--help" in given or "-h" in given:
        sys.stdout.write(f"{__doc__}\nKeys: those of the file; presets: {_presets()}\n")
        return 0
    with user_errors():
        options = parse(given, DEFAULT_FILE)
        if this_rank() == 0:
            sys.stdout.write("\n".join([*options.report(), *options.hints(), ""]))
            sys.stdout.flush()
        run_train(options)
    return 0


def run_train(opt: Options) -> TrainState:
    """Train as the options say.

    Args:
        opt: what ``parse`` returned; keys of the user's own are attributes of it, too.

    Raises:
        ValueError: settings or data that cannot be used.

    Parallelism: called by every rank; collective.
    """
    for module in filter(None, str(opt.get("import_module") or "").split(",")):
        _import(module.strip())
    own = _own_model(opt)
    tree = toolkit_options.read_options(opt, this_world())
    if own is not None:
        _keep_known_sizes(tree)
    task = read_task(localize(canonical(tree)), this_world())
    dataset = None
    name = opt.get("auto_dataset")
    if name:
        dataset = registry.DATASETS.get(name)(opt, "train")
    return run_task(task, model=own, train_dataset=dataset)


def _import(name: str) -> None:
    """Import a module of the user's own, for what it registers."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that the user's own imports
        raise ValueError(
            f"--import_module {name}: there is no module {error.name} in this folder or on "
            "PYTHONPATH; check the name"
        ) from None


def this_rank() -> int:
    """This process, as its launcher tells before the ranks have met."""
    told = launch.told_by_launcher()
    return 0 if told is None else told[0]


def this_world() -> World:
    """The ranks there are, as the launcher and a rank table tell."""
    told = launch.told_by_launcher()
    return World(1 if told is None else told[1], rank_table.num_servers())


def _own_model(opt: Options) -> Any:  # noqa: ANN401
    """Maker of a registered model; None for the preset's own."""
    name = str(opt.get("auto_model") or opt.get("arch") or "")
    if not name or (PRESETS / f"{name}_base.yaml").is_file():
        return None
    if name not in registry.MODELS:
        presets = (path.name.removesuffix("_base.yaml") for path in PRESETS.glob("*_base.yaml"))
        raise ValueError(unknown_name("model", name, [*registry.MODELS, *presets]))
    model = registry.MODELS.get(name)
    settings = dict(opt.to_dict().get("model") or {})

    def make(config: AllConfig) -> Any:  # noqa: ANN401
        del config
        return model(model.Config(**settings))  # type: ignore[attr-defined]

    return make


def _keep_known_sizes(tree: dict[str, Any]) -> None:
    """Leave out what only the user's own model knows."""
    section = tree.get("model", {}).get("model_config", {})
    for key in [key for key in section if key not in {**models.GPT2, **models.ALIASES}]:
        del section[key]


def _presets() -> str:
    return ", ".join(sorted(path.name for path in PRESETS.glob("*.yaml")))


if __name__ == "__main__":
    raise SystemExit(main())
