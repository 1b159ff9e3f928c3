# SPDX-License-Identifier: Apache-2.0
"""The model that a trainer was given: a name, a folder, a configuration, a model, a cell."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindspore.nn import Cell

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import Sections, assemble
from mindspeed_ms.core import run_state
from mindspeed_ms.core.peft.merge import adapted_layers
from mindspeed_ms.engine.run import Run
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.toolkit import hub, registry
from mindspeed_ms.toolkit.models.auto import model_class
from mindspeed_ms.toolkit.models.auto_config import AutoConfig, of_block
from mindspeed_ms.toolkit.models.configuration import EngineConfig, PretrainedConfig
from mindspeed_ms.toolkit.models.locate import find_weights
from mindspeed_ms.toolkit.models.modeling import PreTrainedModel
from mindspeed_ms.toolkit.yaml_config import load_layers

_LEAST = {"vocab_size": 2, "hidden_size": 1, "num_layers": 1, "num_attention_heads": 1}
"""Of a model of the user's own, which knows its sizes itself."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """How the model of a run comes about."""

    describe: Callable[[Sections], AllConfig]
    """Sections of a run -> its configuration, with the model in it."""
    instance: Any
    """The user's object, or one made for the trainer: it has the weights after training."""
    name: str = ""
    is_own_cell: bool = False
    """It is a whole model of the user's own, which returns its loss."""
    is_given: bool = False
    """The object is the user's: its weights in memory are meant."""

    read_from: str = ""
    """A folder or file that was named as the model."""

    @property
    def is_in_memory(self) -> bool:
        """Whether it has weights in memory: the user's, or trained ones."""
        return self.is_own_cell or bool(self.instance.is_built)

    @property
    def weights(self) -> str:
        """Where weights are that the model was read from, and that are not in memory."""
        return "" if self.is_in_memory else self.read_from or str(self.instance.weights_path)

    def find_weights(self) -> str:
        """The weights' path; of a size by name if its files are here. Empty if there are none."""
        if self.is_in_memory or self.weights or not self.name:
            return self.weights
        try:
            return os.fspath(find_weights(self.name).folder)
        except OSError:
            return ""

    def provider(self, config: AllConfig) -> Callable[..., Cell]:
        """What makes the model of a run on this rank.

        Args:
            config: of the run.

        Raises:
            ValueError: a model of the user's own is to be cut.
        """
        if self.is_own_cell:
            _require_whole(config)
            return lambda pre_process=True, post_process=True: self.instance
        chunks = iter(self.instance.build() if self.is_in_memory else ())

        def make(pre_process: bool = True, post_process: bool = True) -> GPTModel:
            chunk = GPTModel(
                config.model_config, pre_process=pre_process, post_process=post_process
            )
            _copy(chunks, chunk)
            return chunk

        return make

    def take(self, run: Run) -> None:
        """Let the object have what the run trains."""
        if isinstance(self.instance, PreTrainedModel):
            with run.active():
                state = run_state.current()
            self.instance.adopt([chunk.module for chunk in run.model], state, run.config)


def _copy(chunks: Iterator[GPTModel], target: GPTModel) -> None:
    """Give a new chunk the weights of the next one in memory."""
    source = next(chunks, None)
    if source is None:
        return
    if any(not adapters.enabled for _, adapters in adapted_layers(source)):
        raise ValueError(
            "adapters are merged into the model, and a run would add them again; take them out "
            "with unmerge_adapter(model), or save_pretrained it, and give its folder"
        )
    present = dict(source.parameters_and_names())
    for name, param in target.parameters_and_names():
        if name not in present or present[name].shape != param.shape:
            raise ValueError(
                f"the model in memory has no {name} of shape {param.shape} on this rank: it was "
                "built in another layout; save it with save_pretrained, and give its folder"
            )
        param.set_data(present[name].astype(param.dtype).copy())


def _require_whole(config: AllConfig) -> None:
    parallel = config.parallel_config
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


def source_of(model: Any, model_name: str | None) -> ModelSource:
    """Tell what a trainer's ``model`` is.

    Args:
        model: name, folder, configuration, model or cell.
        model_name: name of a size; counts where ``model`` is None.

    Raises:
        ValueError: nothing is given.
        OSError: a name that stands for nothing; says where was looked.
        TypeError: it is none of these.
    """
    if model is None:
        model = model_name
    if model_name is not None:
        model_name = hub.checked_name(model_name)
    if isinstance(model, PreTrainedModel):
        return ModelSource(
            model.config.all_config, model, name=str(model_name or ""), is_given=True
        )
    if isinstance(model, Cell):
        return _own(model)
    if model is None or isinstance(model, str | dict) and not model:
        raise ValueError("Trainer needs a model; give model='gpt2', a folder, a config or a model")
    if isinstance(model, AllConfig):
        return _configured(_of_engine(model), describe=_over(model.to_dict()))
    if isinstance(model, Mapping):
        return _configured(of_block(model))
    if isinstance(model, PretrainedConfig):
        return _configured(model, str(model_name or ""))
    if isinstance(model, str | os.PathLike):
        return _named(os.fspath(model))
    raise TypeError(
        f"model is a {type(model).__name__}; give a name, a folder, a configuration, a model of "
        "this package, or a Cell that returns its loss"
    )


def _configured(
    config: PretrainedConfig,
    name: str = "",
    describe: Callable[[Sections], AllConfig] | None = None,
) -> ModelSource:
    return ModelSource(describe or config.all_config, model_class(config)(config), name=name)


def _over(base: Mapping[str, Mapping[str, Any]]) -> Callable[[Sections], AllConfig]:
    """Sections laid over those of a model."""

    def describe(sections: Sections) -> AllConfig:
        names = dict.fromkeys([*base, *sections])
        return assemble({name: {**base.get(name, {}), **sections.get(name, {})} for name in names})

    return describe


def _of_engine(config: AllConfig) -> EngineConfig:
    sections = config.to_dict()
    return EngineConfig(**sections["model_config"], moe_config=sections["moe_config"])


def _named(name: str) -> ModelSource:
    if name in registry.MODELS:
        cls: Any = registry.MODELS.get(name)
        if not issubclass(cls, PreTrainedModel):
            return _own(cls(cls.Config()))
        return ModelSource(cls.Config().all_config, cls(cls.Config()), name=name)
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        base, own = load_layers(path)
        block = {**_block(base), **_block(own)}
        if block:
            return _configured(of_block(block))
    config = AutoConfig.from_pretrained(name)
    source = _configured(config, name=name)
    return replace(source, read_from=source.find_weights()) if path.exists() else source


def _block(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    model = tree.get("model") or {}
    return model.get("model_config") or {}


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
                "seq_length, or max_length to TrainingArguments"
            )
        return _over({"model_config": {**_LEAST, **known}})(sections)

    return ModelSource(describe, model, name=type(model).__name__, is_own_cell=True, is_given=True)
