# SPDX-License-Identifier: Apache-2.0
"""``LoraConfig`` as users of PEFT and MindFormers write it; a front of the section of that name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from mindspore.common import dtype as mstype

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core.dist_checkpointing.live_state import parameters_of
from mindspeed_ms.core.peft.merge import merge, unmerge
from mindspeed_ms.formats import peft
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.adapter import is_adapter_name
from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.given import shown, with_methods
from mindspeed_ms.toolkit.messages import unknown_argument
from mindspeed_ms.toolkit.models.modeling import PreTrainedModel

_NAMES = {
    "r": "r",
    "lora_rank": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "target_modules",
    "exclude_modules": "exclude_modules",
    "exclude_layers": "exclude_modules",
    "layers_to_transform": "layers_to_transform",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "target_parameters": "target_parameters",
    "base_model_name_or_path": "base_model_name_or_path",
}
"""Keyword -> key of ``adapter_config.json``."""
_USUAL: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
_KEPT = ("task_type", "inference_mode", "fan_in_fan_out", "revision", "peft_version")
_KEPT_TOO = ("auto_mapping", "megatron_core", "qalora_group_size")
_TYPES = ("pet_type", "peft_type")


class LoraConfig:
    """How a model is adapted; for ``Trainer(pet_method='lora', lora_config=...)``.

    Args:
        options: ``r`` (or ``lora_rank``) = 8, ``lora_alpha`` = 16, ``lora_dropout`` = 0,
            ``target_modules`` (None: every linear layer), ``exclude_modules`` (or
            ``exclude_layers``), ``layers_to_transform``, ``rank_pattern``, ``alpha_pattern``,
            ``use_rslora``, ``use_dora``, ``base_model_name_or_path``; ``neftune_noise_alpha``,
            which PEFT leaves to its trainers. Other options of PEFT may be given at their
            neutral value.

    Raises:
        TypeError: an unknown keyword.
        ValueError: an option of PEFT that is not done here, or another kind of adapter.

    >>> LoraConfig(lora_rank=4, target_modules=["q_proj"]).section()["lora_rank"]
    4
    """

    def __init__(self, **options: Any) -> None:
        self.neftune_noise_alpha = options.pop("neftune_noise_alpha", None)
        for name in _TYPES:
            kind = options.pop(name, None)
            if kind is not None and str(getattr(kind, "value", kind)).lower() not in ("lora", ""):
                raise ValueError(f"{name} is {shown(kind)}; only 'lora' is done here")
        self.options: dict[str, Any] = dict(_USUAL)
        for name, value in options.items():
            if name not in (*_NAMES, *peft.NEUTRAL, *_KEPT, *_KEPT_TOO):
                raise TypeError(unknown_argument("LoraConfig", name, [*_NAMES, *peft.NEUTRAL]))
            self.options[_NAMES.get(name, name)] = value
        peft.check_options(self.options, "LoraConfig")
        drawn = self.options.get("init_lora_weights")
        if drawn not in (None, True):  # of adapters in files it tells nothing
            raise ValueError(
                f"LoraConfig: init_lora_weights is {drawn!r}; fresh adapters begin with A drawn "
                "uniformly and B zero, which is True"
            )

    def section(self) -> dict[str, Any]:
        """Fields of the section ``lora_config``."""
        noise = self.neftune_noise_alpha
        return {**peft.section_of(self.options), "neftune_noise_alpha": noise}

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> LoraConfig:
        """The options of adapters in PEFT's files.

        Raises:
            ValueError: there are none, or they ask for what is not done here.
        """
        options = peft.read_options(Path(hub.checked_name(folder)))
        config = cls()
        config.options = options  # unknown keys are kept
        return config

    def to_dict(self) -> dict[str, Any]:
        """Options by PEFT's names."""
        return dict(self.options)

    def __repr__(self) -> str:
        """With every option that was given."""
        return f"LoraConfig({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"


def get_pet_model(model: PreTrainedModel, config: LoraConfig) -> PreTrainedModel:
    """The model with fresh adapters beside its frozen weights, which are read anew.

    Args:
        model: of ``from_pretrained``, or not built yet.
        config: how it is adapted.

    Raises:
        ValueError: its weights are in memory alone; or a target fits none of its layers.
    """
    adapted = _model(model)
    if config is None:
        raise TypeError("config is None; give a LoraConfig")
    return adapted.with_adapters(with_methods("config", config, "section").section())


def _model(given: Any) -> PreTrainedModel:
    """What shall have adapters.

    Raises:
        TypeError: it is no model.
    """
    if isinstance(given, PreTrainedModel):
        return given
    raise TypeError(f"model is {shown(given)}; give one of AutoModelForCausalLM.from_pretrained")


class PeftModel:
    """Adapters in PEFT's files beside a model, merged into it, and written."""

    @staticmethod
    def from_pretrained(model: PreTrainedModel, folder: str | os.PathLike[str]) -> PreTrainedModel:
        """The model with the adapters of a folder; its own weights are read anew.

        Raises:
            ValueError: the folder's options are not done here, or its tensors do not fit.
        """
        section = LoraConfig.from_pretrained(folder).section()
        return _model(model).with_adapters(section, Path(folder))


def merge_adapter(model: PreTrainedModel) -> None:
    """Put the adapters into the weights, whose bits are kept; ``save_pretrained`` writes them so.

    Parallelism: collective over the model's ranks.
    """
    for chunk in _model(model).build():
        with model.active():
            merge(chunk)


def unmerge_adapter(model: PreTrainedModel) -> None:
    """Give the weights back the bits they had, and use the adapters again."""
    for chunk in _model(model).build():
        with model.active():
            unmerge(chunk)


def save_adapter(model: PreTrainedModel, folder: str | os.PathLike[str]) -> Path:
    """Write the adapters of a model in PEFT's files.

    Raises:
        ValueError: the model has none, or several ranks share it.
    """
    folder = Path(hub.checked_name(folder))
    engine = _model(model).engine_config
    lora = engine.lora_config
    if not lora.use_lora:
        raise ValueError("the model has no adapters; make them with get_pet_model")
    if len(model.build()) > 1 or comm.get_world_size() > 1:
        raise ValueError(
            "several ranks share the model; save a checkpoint of the run, and convert it: "
            "convert_ckpt convert RUN FOLDER --to peft"
        )
    arrays = {
        item.name: memory.flat_view(memory.contiguous(ops.cast(item.tensor, mstype.float32)))
        .reshape(item.shape)
        .copy()
        for item in parameters_of(model.network)
        if is_adapter_name(item.name)
    }
    base = lora.base_model_name_or_path or model.name_or_path or None
    named = dataclasses.replace(lora, base_model_name_or_path=base)
    spec = gpt_spec(engine.model_config)
    return peft.write(folder, arrays, spec, model.config.family, named)
