# SPDX-License-Identifier: Apache-2.0
"""What the predecessor's constructors and files leave open, filled with a line.

Its sections take any key and need no sequence length; those here do. This is the only place that
knows the difference.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from mindspeed_ms import config
from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.section import Section, rename_keys, section_fields
from mindspeed_ms.training.yaml_styles.build import build_selected, clean_sections, merge_sections
from mindspeed_ms.training.yaml_styles.legacy_keys import modernize
from mindspeed_ms.training.yaml_styles.yaml_files import load_sections

logger = logging.getLogger(__name__)

AnySection = TypeVar("AnySection", bound=Section)

ASSUMED_SEQ_LENGTH = 4096
"""Tokens of a sequence when neither a length nor a number of positions is given."""


def _assume_length(model: dict[str, Any]) -> None:
    if model.get("seq_length") is None:
        model["seq_length"] = model.get("max_position_embeddings") or ASSUMED_SEQ_LENGTH
        logger.warning("seq_length is not given; %s is taken", model["seq_length"])


class TransformerConfig(config.TransformerConfig):
    """``model_config`` with the predecessor's freedoms.

    Args:
        args: the sizes, then the sections it links to, in the order of the fields.
        kwargs: fields, also by older names; keys that select nothing here are told in a line.

    Raises:
        ValueError: an unknown key, a wrong value, or a key of another section.

    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        places = [
            item.name for item in section_fields(config.TransformerConfig) if not item.kw_only
        ]
        given = {**dict(zip(places, args, strict=False)), **kwargs}
        links = {name: given.pop(name) for name in self.LINKS if given.get(name) is not None}
        sections = modernize({self.NAME: given})
        model = sections.pop(self.NAME)
        for section, values in sections.items():
            for key in values:
                raise ValueError(f"{key} belongs to {section}; give it there")
        _assume_length(model)
        super().__init__(**rename_keys(config.TransformerConfig, model), **links)

    @property
    def batch_first(self) -> bool:
        """What ``data_layout`` says."""
        return self.data_layout == "BSH"

    @property
    def adds_masks(self) -> bool:
        """What ``mask_func_type`` says; the fused kernel hides."""
        return self.mask_func_type == "attn_mask_add" and not self.use_flash_attention


def _today(section: Section, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a section under today's names; those that select nothing are told in a line.

    Raises:
        ValueError: an unknown key, or one of another section.
    """
    links = {name: given[name] for name in section.LINKS if name in given}
    plain = {name: value for name, value in given.items() if name not in links}
    sections = modernize({section.NAME: plain})
    own = sections.pop(section.NAME)
    for other, values in sections.items():
        for key in values:
            raise ValueError(f"{key} belongs to {other}; give it there")
    return {**rename_keys(type(section), own), **links}


class ModelParallelConfig(config.ModelParallelConfig):
    """``parallel_config``, also with the predecessor's keys.

    Args:
        kwargs: fields, also by older names.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**_today(self, kwargs))


class DatasetConfig(config.DatasetConfig):
    """``dataset_config``, also with the predecessor's keys.

    Args:
        kwargs: fields, also by older names.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**_today(self, kwargs))


class TrainingConfig(config.TrainingConfig):
    """``training_config``, also with the predecessor's keys.

    Args:
        args: the sections it links to.
        kwargs: fields, also by older names. ``grad_clip_kwargs``, which belongs to the optimizer
            in files, is kept for ``TrainOneStepCell`` and ``get_optimizer``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        clip = kwargs.pop("grad_clip_kwargs", None)
        super().__init__(*args, **_today(self, kwargs))
        if clip is not None:
            object.__setattr__(self, "grad_clip_kwargs", clip)


class OptimizerConfig(config.OptimizerConfig):
    """``optimizer_config``, also with the predecessor's keys.

    Args:
        args: the section it links to.
        kwargs: fields, also by older names.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_today(self, kwargs))


class MoEConfig(config.MoEConfig):
    """``moe_config``, also with the predecessor's keys.

    Args:
        kwargs: fields, also by older names.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**_today(self, kwargs))


def init_configs_from_yaml(
    file_path: str | Path | Sequence[str | Path],
    config_classes: Sequence[type[Section]] | None = None,
    **overrides: Mapping[str, Any],
) -> AllConfig | Section | list[Section]:
    """Build the configuration from YAML files; a model without a sequence length gets one.

    Of a key that is written twice the last value counts, with a line. The model's section is of the
    predecessor's class where that is asked for, or where the file says ``data_layout``: then a
    script's own cells follow it.

    Args:
        file_path: name or names.
        config_classes: build only these classes; None builds an :class:`AllConfig`.
        overrides: ``section={key: value}`` that win over the files.

    Returns:
        As :func:`mindspeed_ms.training.yaml_styles.yaml_files.init_configs_from_yaml`.

    Raises:
        ValueError: an unreadable file, an unknown key, a wrong value, a missing key or a broken
            rule.

    """
    files = load_sections(file_path, repeated=_tell_repeated)
    sections = merge_sections([files, clean_sections(overrides)])
    if "model_config" in sections:
        _assume_length(sections["model_config"])
    built = build_selected(sections, config_classes)
    if isinstance(built, list):
        return [_of_class(one, cls) for one, cls in zip(built, config_classes or (), strict=True)]
    if isinstance(built, AllConfig):
        says_layout = "data_layout" in sections.get("dataset_config", {})
        model = _of_class(built.model_config, TransformerConfig)
        return replace(built, model_config=model) if says_layout else built
    return _of_class(built, (config_classes or (type(built),))[0])


def _tell_repeated(key: str) -> None:
    logger.warning("%s is written twice; the last value counts", key)


def _of_class(section: AnySection, cls: type[Section]) -> AnySection:
    """A model's section with the predecessor's views, if they are asked for."""
    if cls is not TransformerConfig or isinstance(section, TransformerConfig):
        return section
    made = object.__new__(TransformerConfig)
    for name, value in vars(section).items():
        object.__setattr__(made, name, value)
    return cast("AnySection", made)
