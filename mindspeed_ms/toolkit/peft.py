"""``LoraConfig`` as users of PEFT and MindFormers write it; a front of the section of that name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mindspeed_ms.formats import peft
from mindspeed_ms.toolkit.messages import unknown_argument

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
            kind = options.pop(name, None) or "lora"
            if str(getattr(kind, "value", kind)).lower() != "lora":
                raise ValueError(f"{name} is {kind!r}; only 'lora' is done here")
        self.options: dict[str, Any] = dict(_USUAL)
        for name, value in options.items():
            if name not in (*_NAMES, *peft.NEUTRAL, *_KEPT, *_KEPT_TOO):
                raise TypeError(unknown_argument("LoraConfig", name, [*_NAMES, *peft.NEUTRAL]))
            self.options[_NAMES.get(name, name)] = value
        peft.check_options(self.options, "LoraConfig")

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
        options = peft.read_options(Path(folder))
        config = cls()
        config.options = options  # unknown keys are kept
        return config

    def to_dict(self) -> dict[str, Any]:
        """Options by PEFT's names."""
        return dict(self.options)

    def __repr__(self) -> str:
        """With every option that was given."""
        return f"LoraConfig({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"
