# SPDX-License-Identifier: Apache-2.0
"""Auto classes: the configuration or the model that a folder or a name stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.given import shown
from mindspeed_ms.toolkit.models import modeling
from mindspeed_ms.toolkit.models.auto_config import AutoConfig
from mindspeed_ms.toolkit.models.configuration import PretrainedConfig
from mindspeed_ms.toolkit.models.modeling import PreTrainedModel
from mindspeed_ms.toolkit.registry import MODELS


def model_class(config: object) -> Any:
    """The model class of a configuration: a registered one, or the family's.

    Raises:
        TypeError: no configuration of a model.
    """
    for name in MODELS:
        registered: Any = MODELS.get(name)
        if isinstance(config, registered.Config) and registered.Config is not PretrainedConfig:
            return registered
    if not isinstance(config, PretrainedConfig):
        raise TypeError(
            f"{shown(config)} is no configuration of a model; use AutoConfig.from_pretrained(...), "
            "or a class such as GPT2Config"
        )
    for cls in PreTrainedModel.__subclasses__():
        if cls.Config is type(config) and cls.__module__ == modeling.__name__:
            return cls
    name = type(config).__name__.removesuffix("Config") + "ForCausalLM"
    return type(name, (PreTrainedModel,), {"Config": type(config), "__doc__": config.model_type})


class AutoModelForCausalLM:
    """A language model with its head, of the class that fits."""

    def __init__(self) -> None:
        raise OSError(
            f"{type(self).__name__} is not made directly; use from_pretrained(name_or_folder) or "
            "from_config(config)"
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: PretrainedConfig | None = None,
        subfolder: str | None = None,
        **options: Any,
    ) -> PreTrainedModel:
        """The model of a folder or name, with its weights; see ``PreTrainedModel``.

        Raises:
            OSError: nothing is found; says where was looked.
            ValueError: the files are incomplete, or of a model that cannot be held.
        """
        place = hub.below(pretrained_model_name_or_path, subfolder)
        if config is None:
            config = AutoConfig.from_pretrained(place)
        return model_class(config).from_pretrained(place, config=config, **options)

    @classmethod
    def from_config(cls, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
        """A model with random weights.

        Args:
            config: a configuration; what ``AutoConfig`` reads, a file or its blocks, too.
            options: of the model.
        """
        if isinstance(config, str | os.PathLike):
            config = AutoConfig.from_pretrained(config)
        elif isinstance(config, Mapping):
            config = AutoConfig.from_dict(config)
        return model_class(config)(config, **options)

    @classmethod
    def show_support_list(cls) -> list[str]:
        """Print, and return, the names of all sizes."""
        return AutoConfig.show_support_list()


class AutoModel(AutoModelForCausalLM):
    """The same: as in MindFormers, the model comes with its head."""
