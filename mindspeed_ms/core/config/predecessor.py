# SPDX-License-Identifier: Apache-2.0
"""What the predecessor's constructors and files leave open, filled with a line.

Its sections take any key, also later by assignment, and need no sequence length; those here are
frozen. This is the only place that knows the difference.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, TypeVar, cast

from mindspeed_ms import config
from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import Sections, fill_types
from mindspeed_ms.config.coercion import suggestion
from mindspeed_ms.config.section import (
    Section,
    coerce_field,
    field_default,
    field_names,
    rename_keys,
    section_fields,
)
from mindspeed_ms.core import run_state
from mindspeed_ms.training.yaml_styles.build import build_selected, clean_sections, merge_sections
from mindspeed_ms.training.yaml_styles.guide_style import is_guide_style, join_kernel_choices
from mindspeed_ms.training.yaml_styles.legacy_keys import is_inert, modernize
from mindspeed_ms.training.yaml_styles.yaml_files import find_yaml, load_sections, read_yaml

logger = logging.getLogger(__name__)

AnySection = TypeVar("AnySection", bound=Section)

ASSUMED_SEQ_LENGTH = 4096
"""Tokens of a sequence when neither a length nor a number of positions is given."""


def _complete(model: dict[str, Any]) -> None:
    """Fill in a length, and tell of a name that means something else here."""
    if model.get("hidden_act") == "fast_gelu":
        logger.warning("hidden_act fast_gelu is the tanh form; quick_gelu is MindSpore's operator")
    if model.get("seq_length") is None:
        model["seq_length"] = model.get("max_position_embeddings") or ASSUMED_SEQ_LENGTH
        logger.warning("seq_length is not given; %s is taken", model["seq_length"])


_KEPT: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("parallel_config", "overlap_grad_reduce"): "training_config.overlap_grad_reduce counts",
        ("dataset_config", "train_samples"): "training_config.train_samples counts in files",
    }
)
"""(section, key) of the predecessor's constructors that files hand to another section."""

_UNSET: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "parallel_config": {"overlap_grad_reduce": False},
        "dataset_config": {"dataset_dir": "./dataset", "train_samples": 0},
        "training_config": {
            "grad_clip_kwargs": None,
            "enable_compile_cache": False,
            "compile_cache_path": None,
            "loss_func_kwargs": None,
        },
        "optimizer_config": {
            "learning_rate_scheduler_kwargs": None,
            "weight_decay_kwargs": None,
            "zero_config": None,
        },
        "model_config": {
            "attention_type": "self_attn",
            "parallel_position_embedding": False,
            "use_visual_encoder": False,
            "use_retriever": False,
            "retro_add_retriever": False,
            "head_skip_weight_param_allocation": True,
            "enable_flash_sp": False,
            "out_hidden_size": None,
            "flatten_labels_and_input_mask": True,
            "bias_dropout_fusion": False,
            "masked_softmax_fusion": False,
            "distribute_saved_activations": False,
            "clone_scatter_output_in_embedding": False,
            "fp8_format": None,
            "encoder_num_layers": None,
            "decoder_num_layers": None,
            "model_type": "encoder_or_decoder",
            "select_recompute": False,
            "select_comm_recompute": False,
        },
    }
)
"""Attributes of the predecessor's sections that select nothing here, and what they read as."""


class GeneralConfig(SimpleNamespace):
    """A configuration of the user's own: attributes of any names.

    Args:
        kwargs: the attributes.
    """


class _Open:
    """A section whose fields may be assigned, and that keeps what it does not know.

    A value is checked when it is assigned, and what follows from it is derived anew. Sections that
    link to this one see it, since the link is the object.
    """

    __slots__ = ("_given",)
    _given: dict[str, Any]

    def _take(self, fields: Mapping[str, Any], extras: Mapping[str, Any]) -> None:
        """Remember what was given and attach what is no field."""
        object.__setattr__(self, "_given", dict(fields))
        for name, value in extras.items():
            if not hasattr(type(self), name):
                object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> object:
        """An attribute without an effect that was not given; asked only where none is found."""
        unset = _UNSET.get(getattr(type(self), "NAME", ""), {})
        if name in unset:
            return unset[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        """Give a field, under any of its names, another value; keep an attribute of another name.

        A rule between fields that this value alone breaks is told in a line, since others may be
        assigned next; :func:`settled` insists on it.

        Raises:
            ValueError: the field does not take the value, or it belongs to another section.
        """
        if name == "_given" or name in _section(self).LINKS:
            object.__setattr__(self, name, value)
            return
        fields, extras = _today(_section(self), {name: value})
        plain = _plain(self)
        values = {
            key: field_default(plain, key) if one is None else coerce_field(plain, key, one)
            for key, one in fields.items()
        }
        self._take({**self._given, **fields}, extras)
        if not values:
            return
        try:
            settled(self)
        except ValueError as error:
            for key, one in values.items():
                object.__setattr__(self, key, one)
            logger.warning("%s (after %s.%s = %r)", error, plain.NAME, name, value)


def _has(open_section: Any, name: str) -> bool:
    """Whether a section has a value of that name, be it a field's, a view or an attribute."""
    return name in vars(open_section) or hasattr(type(open_section), name)


def _section(open_section: Any) -> Section:
    """The object under its other class."""
    return cast("Section", open_section)


def _plain(open_section: Any) -> type[Section]:
    """The frozen class that a section of the predecessor is made of."""
    return config.SECTION_CLASSES[open_section.NAME]


def settled(section: Any) -> Any:
    """A section after assignments: the same object, whose derived values follow the given ones.

    Raises:
        ValueError: the first rule that its values break.
    """
    if not isinstance(section, _Open):
        return section
    cls = _plain(section)
    links = {name: getattr(section, name) for name in cls.LINKS}
    given = {name: value for name, value in section._given.items() if value is not None}
    fresh = cls(**{**given, **links})
    for item in section_fields(cls):
        object.__setattr__(section, item.name, getattr(fresh, item.name))
    return section


def _today(section: Section, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a section under today's names, and those that are no fields, told in a line.

    A given None is kept: it forgets what was given before.

    Raises:
        ValueError: a key that is nearly a field's, or one of another section.
    """
    name, cls = section.NAME, _plain(section)
    own = {*field_names(cls), *cls.ALIASES}
    empty = {cls.ALIASES.get(key, key): None for key, one in given.items() if one is None}
    kept = {key: one for key, one in given.items() if (name, key) in _KEPT and one is not None}
    for key in [key for key, one in kept.items() if one]:
        logger.warning("%s.%s is kept as an attribute: %s", name, key, _KEPT[name, key])
    rest = {key: one for key, one in given.items() if one is not None and key not in kept}
    sections = modernize({name: rest})
    current = sections.pop(name)
    for other, values in sections.items():
        for key in values:
            raise ValueError(f"{key} belongs to {other}; give it there")
    inert = {key: one for key, one in given.items() if is_inert(name, key) and key not in own}
    extras = {**kept, **inert}
    for key in [key for key in current if key not in own and not suggestion(key, own)]:
        extras[key] = current.pop(key)
        logger.warning("%s.%s is no option; it is kept as an attribute, read by nothing", name, key)
    for key in [key for key in empty if key not in own]:
        extras[key] = empty.pop(key)
    return {**empty, **rename_keys(cls, current)}, extras


def _open(section: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a section's frozen class, from those of the predecessor's."""
    cls = _plain(section)
    places = [item.name for item in section_fields(cls) if not item.kw_only]
    if len(args) > len(places):
        raise TypeError(f"{cls.__name__} takes {len(places)} arguments by position at most")
    given = {**dict(zip(places, args, strict=False)), **kwargs}
    links = {name: given.pop(name) for name in cls.LINKS if name in given}
    fields, extras = _today(section, given)
    fields = {name: value for name, value in fields.items() if value is not None}
    if cls is config.TransformerConfig:
        _complete(fields)
    section._take(fields, extras)
    return {**fields, **{name: link for name, link in links.items() if link is not None}}


class TransformerConfig(_Open, config.TransformerConfig):
    """``model_config`` with the predecessor's freedoms.

    Args:
        args: the sizes, then the sections it links to, in the order of the fields.
        kwargs: fields, also by older names; keys that select nothing here are told in a line and
            kept as attributes.

    Raises:
        ValueError: a misspelt key, a wrong value, or a key of another section.

    """

    says_layout = True
    """False: its file does not name the layout, so that in a run of ``pretrain`` the sequence is
    first, as in the guide.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(**_open(self, args, kwargs))
        object.__setattr__(self, "_initializer", kwargs.get("init_method"))

    @property
    def init_method(self) -> Any:
        """What was given for it, for a script's own layers."""
        given = getattr(self, "_initializer", None)
        return super().init_method if given is None else given

    @property
    def _follows_scripts(self) -> bool:
        return self.says_layout or run_state.current().find(AllConfig) is None

    @property
    def batch_first(self) -> bool:
        """What ``data_layout`` says."""
        return self.data_layout == "BSH" and self._follows_scripts

    @property
    def adds_masks(self) -> bool | None:
        """What ``mask_func_type`` says; the fused kernel hides."""
        if not self._follows_scripts:
            return None
        return self.mask_func_type == "attn_mask_add" and not self.use_flash_attention


class ModelParallelConfig(_Open, config.ModelParallelConfig):
    """``parallel_config``, also with the predecessor's keys.

    Args:
        kwargs: fields, also by older names.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**_open(self, (), kwargs))


class DatasetConfig(_Open, config.DatasetConfig):
    """``dataset_config``, also with the predecessor's keys.

    Args:
        kwargs: fields, also by older names.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**_open(self, (), kwargs))


class TrainingConfig(_Open, config.TrainingConfig):
    """``training_config``, also with the predecessor's keys.

    Args:
        args: the sections it links to.
        kwargs: fields, also by older names. ``grad_clip_kwargs``, which belongs to the optimizer
            in files, is kept for ``TrainOneStepCell`` and ``get_optimizer``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        clip = kwargs.pop("grad_clip_kwargs", None)
        super().__init__(**_open(self, args, kwargs))
        if clip is not None:
            self.grad_clip_kwargs = clip

    def __setattr__(self, name: str, value: object) -> None:
        """As of every section; ``grad_clip_kwargs`` is kept here."""
        if name == "grad_clip_kwargs":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class OptimizerConfig(_Open, config.OptimizerConfig):
    """``optimizer_config``, also with the predecessor's keys.

    Args:
        args: the section it links to.
        kwargs: fields, also by older names.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(**_open(self, args, kwargs))


class MoEConfig(_Open, config.MoEConfig):
    """``moe_config``, also with the predecessor's keys.

    Args:
        kwargs: fields, also by older names.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**_open(self, (), kwargs))


OPEN_CLASSES: Mapping[str, type[Section]] = {
    cls.NAME: cls
    for cls in (
        *(ModelParallelConfig, DatasetConfig, MoEConfig),
        *(TrainingConfig, TransformerConfig, OptimizerConfig),
    )
}
"""Section name -> its class with the predecessor's freedoms."""


def init_configs_from_yaml(
    file_path: str | Path | Sequence[str | Path],
    config_classes: Sequence[type[Section]] | None = None,
    **overrides: Mapping[str, Any],
) -> AllConfig | Section | list[Section]:
    """Build the configuration from YAML files; a model without a sequence length gets one.

    Of a key that is written twice the last value counts, with a line. The sections are of the
    predecessor's classes: fields may be assigned, and keys without an effect are attributes.

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
        _complete(sections["model_config"])
    built = build_selected(sections, config_classes)
    freed = _Freed(sections, _written(file_path))
    if isinstance(built, list):
        return [freed.of(one) for one in built]
    if not isinstance(built, AllConfig):
        return freed.of(built)
    whole = replace(built, **{name: freed.of(getattr(built, name)) for name in OPEN_CLASSES})
    if config_classes is None and "data_layout" not in sections.get("dataset_config", {}):
        object.__setattr__(whole.model_config, "says_layout", False)
    return whole


def _tell_repeated(key: str) -> None:
    logger.warning("%s is written twice; the last value counts", key)


def _written(file_path: str | Path | Sequence[str | Path]) -> Sections:
    """The keys of the files as they stand there; none of the guide's own style."""
    found: Sections = {}
    for name in [file_path] if isinstance(file_path, str | Path) else file_path:
        document = read_yaml(find_yaml(name), lambda _key: None)
        if is_guide_style(document):
            continue
        for section, values in document.items():
            if isinstance(values, Mapping):
                found.setdefault(section, {}).update(values)
    return found


class _Freed:
    """Sections of a file under the predecessor's classes, each once.

    Args:
        sections: what was given for each, under today's names.
        written: what the files say.
    """

    def __init__(self, sections: Sections, written: Sections) -> None:
        self._given = merge_sections([sections])
        join_kernel_choices(self._given)
        fill_types(self._given)
        self._written = written
        self._made: dict[int, tuple[Section, Section]] = {}

    def of(self, section: AnySection) -> AnySection:
        """The open twin of a section, linked to the twins of those that it links to."""
        if id(section) not in self._made:
            self._made[id(section)] = (section, self._twin(section))
        return cast("AnySection", self._made[id(section)][1])

    def _twin(self, section: Section) -> Section:
        cls = OPEN_CLASSES.get(section.NAME)
        if cls is None:
            return section
        made: Any = object.__new__(cls)
        for name, value in vars(section).items():
            free = self.of(value) if name in cls.LINKS and value is not None else value
            object.__setattr__(made, name, free)
        written = self._written.get(section.NAME, {})
        extras = {key: one for key, one in written.items() if not _has(made, str(key))}
        made._take(self._given.get(section.NAME, {}), extras)
        return cast("Section", made)
