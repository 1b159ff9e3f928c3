# SPDX-License-Identifier: Apache-2.0
"""``AutoConfig``: the configuration that a folder or a name stands for. No MindSpore is needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.given import mapping
from mindspeed_ms.toolkit.models.configuration import (
    PretrainedConfig,
    config_class,
    from_located,
    show,
)
from mindspeed_ms.toolkit.models.locate import locate
from mindspeed_ms.toolkit.models.presets import presets


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
        """From a ``config.json``."""
        kind = mapping("values", values).get("model_type")
        return config_class(kind).from_dict(values)

    @classmethod
    def show_support_list(cls) -> list[str]:
        """Print, and return, the names of all sizes."""
        return show("models", list(presets()))
