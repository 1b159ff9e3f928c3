# SPDX-License-Identifier: Apache-2.0
"""``AutoConfig``: the configuration that a folder or a name stands for. No MindSpore is needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.given import mapping
from mindspeed_ms.toolkit.mapping import model as models
from mindspeed_ms.toolkit.mapping.tree import canonical
from mindspeed_ms.toolkit.models.configuration import (
    PretrainedConfig,
    config_class,
    from_located,
    show,
)
from mindspeed_ms.toolkit.models.locate import locate
from mindspeed_ms.toolkit.models.presets import presets

_MODEL_TYPES = {"GPT2Config": "gpt2", "LlamaConfig": "llama", "PanguAlphaConfig": "gpt_pangu"}


class AutoConfig:
    """A configuration of the class that fits."""

    def __init__(self) -> None:
        raise OSError(
            "AutoConfig is not made directly; use from_pretrained(name_or_folder) or "
            "for_model(model_type)"
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        **changes: Any,
    ) -> PretrainedConfig:
        """The configuration of a folder, a file or the name of a size.

        Args:
            pretrained_model_name_or_path: a folder with ``config.json`` or a checkpoint of any
                format, a ``.yaml`` or ``.json``, or a name.
            subfolder: folder below it that is meant.
            changes: values to set on it.

        Raises:
            OSError: nothing is found; says where was looked.
            TypeError: a name that no value has.
            ValueError: it describes no model that can be held.
        """
        located = locate(hub.below(pretrained_model_name_or_path, subfolder), presets())
        return from_located(located, PretrainedConfig).changed(changes)

    @classmethod
    def for_model(cls, model_type: str, **given: Any) -> PretrainedConfig:
        """A configuration of a model type, with values.

        Raises:
            ValueError: an unknown model type.
        """
        return config_class(model_type)(**given)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PretrainedConfig:
        """From a ``config.json``, or a file's blocks or ``model_config`` block of MindFormers."""
        kind = mapping("values", values).get("model_type")
        if kind is None and isinstance(values.get("model"), Mapping):
            return of_block(values["model"].get("model_config") or {})
        if kind is None and "type" in values:
            return of_block(values)
        return config_class(kind).from_dict(values)

    @classmethod
    def show_support_list(cls) -> list[str]:
        """Print, and return, the names of all sizes."""
        return show("models", list(presets()))


def of_block(block: Mapping[str, Any]) -> PretrainedConfig:
    """A ``model_config`` block of MindFormers; without types, those of ``transformers`` hold.

    Raises:
        ValueError: a type that does not exist.
    """
    given = dict(canonical({"model": {"model_config": dict(block)}})["model"]["model_config"])
    kind = given.pop("type", None)
    models.family_of(kind)
    return AutoConfig.for_model(_MODEL_TYPES[str(kind)], **given)
