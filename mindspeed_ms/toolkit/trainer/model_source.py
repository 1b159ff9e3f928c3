"""The model that a trainer was given: a name, a folder, a configuration, a model, a cell."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore.nn import Cell

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import Sections, assemble
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.toolkit import hub, registry
from mindspeed_ms.toolkit.mapping import model as models
from mindspeed_ms.toolkit.messages import unknown_name

_WEIGHTS = ("*.safetensors", "*.ckpt", "latest_checkpointed_iteration.txt")
_LEAST = {"vocab_size": 2, "hidden_size": 1, "num_layers": 1, "num_attention_heads": 1}
"""Of a model of the user's own, which knows its sizes itself."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """How the model of a run comes about."""

    describe: Callable[[Sections], AllConfig]
    """Sections of a run -> its configuration, with the model in it."""
    name: str = ""
    make: Callable[[AllConfig], Cell] | None = None
    """Makes a whole model of the user's own, which returns its loss."""
    instance: Any = None
    """The user's object whose weights are trained; it has them in memory."""
    weights: str = ""
    """Where its weights are, a name or a path; empty: drawn at random, or in memory."""
    is_named: bool = False
    """The name is that of a size: weights are looked for only where they are needed."""

    def provider(self, config: AllConfig) -> Callable[..., Cell]:
        """What makes the model of a run on this rank.

        Raises:
            ValueError: a model of the user's own is to be cut.
        """
        if self.make is None:
            return lambda pre_process=True, post_process=True: GPTModel(
                config.model_config, pre_process=pre_process, post_process=post_process
            )
        parallel, make = config.parallel_config, self.make
        sizes = {
            "model_parallel": parallel.tensor_model_parallel_size,
            "pipeline_stage": parallel.pipeline_model_parallel_size,
            "context_parallel": parallel.context_parallel_size,
        }
        for key, size in sizes.items():
            if size > 1:
                raise ValueError(
                    f"a model of one's own is whole on every rank, but {key} is {size}; set it to 1"
                )
        return lambda pre_process=True, post_process=True: make(config)

    def find_weights(self) -> str:
        """The weights' path where a size is named and its files are here; empty if not."""
        if self.weights and not self.is_named:
            return self.weights
        found = hub.find(self.name, _WEIGHTS) if self.name else None
        return "" if found is None else str(found)


def source_of(model: Any, model_name: str | None) -> ModelSource:
    """Tell what a trainer's ``model`` is.

    Args:
        model: name, folder, configuration, model or cell.
        model_name: name of a size; counts where ``model`` is None.

    Raises:
        ValueError: nothing is given, or a name that nobody knows.
        TypeError: it is none of these.
    """
    if model is None:
        model = model_name
    if not model and not isinstance(model, Cell):
        raise ValueError("Trainer needs a model; give model='gpt2', a folder, a config or a model")
    if isinstance(model, str | os.PathLike):
        return _named(os.fspath(model))
    if isinstance(model, AllConfig):
        return ModelSource(_over(model.to_dict()))
    if isinstance(model, Mapping):
        return ModelSource(_of_block(model))
    if hasattr(model, "all_config"):
        return _configured(model, model_name)
    if isinstance(model, Cell):
        return _own(model)
    raise TypeError(
        f"model is a {type(model).__name__}; give a name, a folder, a configuration, a model of "
        "this package, or a Cell that returns its loss"
    )


def _configured(config: Any, name: str | None) -> ModelSource:
    weights = str(getattr(config, "checkpoint_name_or_path", "") or "")
    return ModelSource(config.all_config, name=str(name or ""), weights=weights)


def _over(base: Mapping[str, Mapping[str, Any]]) -> Callable[[Sections], AllConfig]:
    """Sections laid over those of a model."""

    def describe(sections: Sections) -> AllConfig:
        names = dict.fromkeys([*base, *sections])
        return assemble({name: {**base.get(name, {}), **sections.get(name, {})} for name in names})

    return describe


def _of_block(block: Mapping[str, Any]) -> Callable[[Sections], AllConfig]:
    """A ``model_config`` block of MindFormers."""

    def describe(sections: Sections) -> AllConfig:
        ranks = sections.get("parallel_config", {}).get("tensor_model_parallel_size", 1)
        return _over(models.map_model(dict(block), ranks).sections)(sections)

    return describe


def _named(name: str) -> ModelSource:
    if name in registry.MODELS:
        cls: Any = registry.MODELS.get(name)
        return _own(cls(cls.Config()))
    kinds = {family.removesuffix("Config").lower(): family for family in models.FAMILIES}
    if name in kinds:
        block = {"type": kinds[name], "param_init_type": "float32", "compute_dtype": "float32"}
        return ModelSource(_of_block(block), name=name, is_named=True)
    if Path(name).exists():
        raise ValueError(f"model {name!r} is a folder or file that describes no model")
    raise ValueError(unknown_name("model", name, [*kinds, *registry.MODELS]))


def _own(model: Cell) -> ModelSource:
    config = getattr(model, "config", None)

    def describe(sections: Sections) -> AllConfig:
        known = {
            name: value
            for name in ("seq_length", "vocab_size")
            if isinstance(value := getattr(config, name, None), int)
        }
        given = sections.get("model_config", {})
        if "seq_length" not in {**known, **given}:
            raise ValueError(
                f"{type(model).__name__} does not tell its seq_length; give it a config with "
                "seq_length"
            )
        return _over({"model_config": {**_LEAST, **known}})(sections)

    return ModelSource(
        describe, name=type(model).__name__, make=lambda config: model, instance=model
    )
