# SPDX-License-Identifier: Apache-2.0
"""Configurations of models: a ``config.json`` with attributes.

A configuration keeps every key it was given, and what a missing key means is the family's business
(``models/families``). Names of MindFormers and of Megatron stand for keys. No MindSpore is needed.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import Sections, assemble
from mindspeed_ms.config.dtypes import FLOAT32, DType, parse_dtype
from mindspeed_ms.config.section import suggestion
from mindspeed_ms.config.transformer_config import padded_vocab_size
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.families.family import NEUTRAL, Family
from mindspeed_ms.models.families.registry import family_of_type
from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.given import mapping, shown
from mindspeed_ms.toolkit.mapping.model import ALIASES
from mindspeed_ms.toolkit.mapping.rows import Mapped, apply
from mindspeed_ms.toolkit.messages import say_once, unknown_argument
from mindspeed_ms.toolkit.models import config_names
from mindspeed_ms.toolkit.models.locate import Located, locate
from mindspeed_ms.toolkit.models.presets import CLASS_DEFAULTS, presets

logger = logging.getLogger(__name__)

CONFIG = "config.json"
Self = TypeVar("Self", bound="PretrainedConfig")

_OWN = ("values", "run", "generation", "name_or_path", "checkpoint_name_or_path", "is_of_file")
_GENERATION_ALIASES = {"max_decode_length": "max_length"}


class PretrainedConfig:
    """Configuration of a model.

    Args:
        given: keys of the family's ``config.json``, or MindFormers' names for them; what is not
            given is as in the class of ``transformers``. Further MindFormers' keys say how the
            model is run (``compute_dtype``, ``param_init_type``, ...), where its weights are
            (``checkpoint_name_or_path``), and how it generates (``top_k``, ...).

    Attributes:
        values: the keys of ``config.json``.
        run: sections and fields of how the model is run.
        generation: MindFormers' keys about generation.
        name_or_path: what it was read from.
        is_of_file: the keys are those of a ``config.json``, all of them and no others.

    Raises:
        TypeError: an unknown name; names the near one.
        ValueError: a value that cannot be held.
    """

    model_type: ClassVar[str] = ""
    values: dict[str, Any]
    run: Sections
    generation: dict[str, Any]
    name_or_path: str
    checkpoint_name_or_path: str
    is_of_file: bool

    def __init__(self, **given: Any) -> None:
        values: dict[str, Any] = {}
        foreign: dict[str, Any] = {}
        self._start(values)
        known = self._known()
        for name, value in given.items():
            key = config_names.key_of(self.model_type, name, known)
            if key in known:
                values[key] = config_names.activation(self.model_type, name, value)
            elif key in ("expand_ratio", "multiple_of", "ffn_dim_multiplier"):
                values[key] = value
            else:
                foreign[name] = value
        defaults = dict(CLASS_DEFAULTS.get(self.model_type, {}))
        if "hidden_size" in values and "multiple_of" not in values:
            # MindFormers: the inner width follows from the hidden size.
            defaults.pop("intermediate_size", None)
            values.setdefault("multiple_of", 256)
        if "num_attention_heads" in values:
            defaults.pop("num_key_value_heads", None)
        merged = {**defaults, **values}
        config_names.resolve_sizes(self.model_type, merged)
        values.clear()
        values.update({"model_type": self.model_type, **merged})
        self._take_run(foreign)
        self.all_config()  # refuses what does not go together

    def _start(self, values: dict[str, Any]) -> None:
        self.__dict__.update(
            values=values,
            run={},
            generation={},
            name_or_path="",
            checkpoint_name_or_path="",
            is_of_file=False,
        )

    def _known(self) -> frozenset[str]:
        known = config_names.COMMON_KEYS | NEUTRAL | self.family.neutral
        return known.union(*(rule.keys for rule in self.family.rules))

    def _take_run(self, foreign: Mapping[str, Any]) -> None:
        """Keys that say how the model is run."""
        table = config_names.run_table(self.model_type)
        plain = {ALIASES.get(name, name): value for name, value in foreign.items()}
        for name, stated in zip(plain, foreign, strict=True):
            if name not in table:
                known = {*self._known(), *ALIASES, *table} - {stated}
                raise TypeError(unknown_argument(type(self).__name__, stated, known))
        mapped: Mapped = apply(plain, table, type(self).__name__)
        for section, fields in mapped.sections.items():
            self.run.setdefault(section, {}).update(fields)
        joint = mapped.joint
        self.checkpoint_name_or_path = joint.pop("checkpoint_name_or_path", None) or (
            self.checkpoint_name_or_path
        )
        for key in config_names.GENERATION_KEYS:
            if key in joint:
                self.generation[_GENERATION_ALIASES.get(key, key)] = joint[key]
        for line in mapped.notes():
            say_once(logger, f"{type(self).__name__}: {line}")

    # --- values -----------------------------------------------------------------------------------

    @property
    def family(self) -> Family:
        """The family, which knows what the keys mean."""
        return family_of_type(self.model_type)

    @property
    def attribute_map(self) -> dict[str, str]:
        """Other names -> keys."""
        known = self._known()
        names = {*ALIASES, *ALIASES.values(), "seq_length", "ffn_hidden_size"}
        pairs = {name: config_names.key_of(self.model_type, name, known) for name in names}
        return {name: key for name, key in pairs.items() if key in known and key != name}

    def _key(self, name: str) -> str:
        return config_names.key_of(self.model_type, name, self._known() | self.values.keys())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "values" not in self.__dict__:
            raise AttributeError(name)
        key = self._key(name)
        if key in self.values:
            return self.values[key]
        meant = self.meant()
        if key in meant:
            return meant[key]
        if name in self.generation:
            return self.generation[name]
        for fields in self.run.values():
            if name in fields:
                return fields[name]
        if key in self._known():
            return None
        near = suggestion(name, [*self.values, *meant, *self.attribute_map])
        raise AttributeError(f"{type(self).__name__} has no {name!r}{near}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            self.__dict__[name] = value
        else:
            self.values[self._key(name)] = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PretrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, default=str)}"

    def meant(self) -> dict[str, Any]:
        """What the family's keys mean here, also those that are not given."""
        family = self.family
        return family.config_json(family.config(self.values), self.values["vocab_size"])

    def to_dict(self) -> dict[str, Any]:
        """The ``config.json``: every key that was given, and the family's others by what they mean.

        A configuration that was read has exactly the keys of its file.
        """
        if self.is_of_file:
            return copy.deepcopy(self.values)
        return {**self.meant(), **copy.deepcopy(self.values)}

    def to_json_string(self, use_diff: bool = True) -> str:
        """``to_dict`` as the text of a ``config.json``; there is no shorter form of it."""
        del use_diff
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_diff_dict(self) -> dict[str, Any]:
        """The values that were given, or that the file has."""
        return copy.deepcopy(self.values)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several values."""
        for name, value in mapping("values", values).items():
            setattr(self, name, value)

    def changed(self: Self, changes: Mapping[str, Any]) -> Self:
        """This configuration with what ``from_pretrained`` was given beside the name.

        Raises:
            TypeError: a name that neither the file nor the class has; names the near one.
            ValueError: a value that cannot be held.
        """
        known = self._known() | self.values.keys()
        changes = hub.without_remote(mapping("changes", changes))
        own = {name: value for name, value in changes.items() if self._key(name) in known}
        self._take_run({name: value for name, value in changes.items() if name not in own})
        for name, value in own.items():
            setattr(self, name, config_names.activation(self.model_type, name, value))
        if changes:
            self.all_config()
        return self

    # --- what the engine builds -------------------------------------------------------------------

    @property
    def dtype(self) -> DType:
        """Type of weights and of computation."""
        named = self.values.get("dtype") or self.values.get("torch_dtype")
        return FLOAT32 if named is None else parse_dtype(named)

    def all_config(
        self, sections: Mapping[str, Mapping[str, Any]] | None = None, dtype: str | None = None
    ) -> AllConfig:
        """The engine's configuration of this model.

        Args:
            sections: section -> field -> value: layout, training, whatever a run sets; wins over
                the configuration's own.
            dtype: type of weights and of computation, None for the configuration's.

        Raises:
            ValueError: values that cannot be held, or that do not go together.
        """
        kind = self.dtype if dtype is None else parse_dtype(dtype)
        types = {"params_dtype": kind, "compute_dtype": kind, "embedding_init_dtype": kind}
        merged: Sections = {"model_config": dict(types)}
        own = {} if sections is None else mapping("sections", sections)
        for source in (self._sections(), self.run, own):
            for section, fields in source.items():
                merged.setdefault(section, {}).update(mapping(section, fields))
        rows = merged["model_config"]["vocab_size"]
        ranks = merged.get("parallel_config", {}).get("tensor_model_parallel_size") or 1
        merged["model_config"]["vocab_size"] = padded_vocab_size(rows, 1, ranks)
        data = merged.setdefault("dataset_config", {})
        data.setdefault("vocab_size", rows)
        data.setdefault("make_vocab_size_divisible_by", 1)
        return assemble(merged)

    def _sections(self) -> Sections:
        return self.family.sections({**self.values, "model_type": self.model_type})

    def num_parameters(self) -> int:
        """Trained elements of the whole model, exactly; nothing is built.

        Layers for further tokens are left out, as in ``transformers``: DeepSeek V3 has 671.0 B, and
        11.6 B more in such a layer, which training and its plans count.
        """
        return gpt_spec(self.all_config().model_config).num_next_token_parameters

    # --- files ------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls: type[Self], values: Mapping[str, Any], name_or_path: str = "") -> Self:
        """From a ``config.json``: all its keys are kept, known or not.

        Raises:
            ValueError: a value that cannot be held here, or another kind of model.
        """
        kind = mapping("values", values).get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(
                f"{name_or_path or 'the configuration'} is of model_type {kind!r}, but "
                f"{cls.__name__} is for {cls.model_type!r}; use AutoConfig"
            )
        config = cls.__new__(cls)
        config._start(copy.deepcopy(dict(values)))
        config.name_or_path = name_or_path
        config.all_config()
        return config

    @classmethod
    def from_pretrained(
        cls: type[Self],
        name_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        **changes: Any,
    ) -> Self:
        """From a folder, a file or the name of a size; see ``locate``.

        Args:
            name_or_path: where it is.
            subfolder: folder below it that is meant.
            changes: values to set on it.

        Raises:
            OSError: nothing is found; says where was looked.
            TypeError: a name that no value has.
            ValueError: it is no configuration of this kind.
        """
        located = locate(hub.below(name_or_path, subfolder), presets())
        return from_located(located, cls).changed(changes)

    @classmethod
    def show_support_list(cls) -> list[str]:
        """Print, and return, the names of sizes of this kind of model."""
        names = [name for name, size in presets().items() if size["model_type"] == cls.model_type]
        return show(cls.__name__, names)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path:
        """Write ``config.json`` into a folder; return its path."""
        folder = Path(hub.checked_name(save_directory))
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_text(folder / CONFIG, json.dumps(self.to_dict(), indent=2) + "\n")
        return folder / CONFIG


class EngineConfig(PretrainedConfig):
    """A model that no family on the hub can hold: described by the engine's own sections.

    Args:
        given: fields of ``model_config`` and, as a block, ``moe_config``.
    """

    model_type: ClassVar[str] = "mindspeed_ms"

    def __init__(self, **given: Any) -> None:
        self._start({"model_type": self.model_type, **given})
        self.all_config()

    def _known(self) -> frozenset[str]:
        return frozenset(self.values)

    def _key(self, name: str) -> str:
        return {"num_heads": "num_attention_heads"}.get(name, name)

    def meant(self) -> dict[str, Any]:
        """The given fields."""
        return dict(self.values)

    def _sections(self) -> Sections:
        model = {key: value for key, value in self.values.items() if key != "model_type"}
        moe = model.pop("moe_config", {})
        return {"model_config": model, "moe_config": dict(moe)}


def show(title: str, names: list[str]) -> list[str]:
    """Print the names that a class knows."""
    logger.warning("%s: %s", title, ", ".join(names))
    return names


def config_class(model_type: object) -> type[PretrainedConfig]:
    """The configuration class of a model type; made from the family if nobody has written one.

    Raises:
        ValueError: an unknown model type.
    """
    if model_type is not None and not isinstance(model_type, str):
        raise TypeError(f"model_type is {shown(model_type)}, but must be a text, as llama")
    for cls in PretrainedConfig.__subclasses__():
        if cls.model_type == model_type:
            return cls
    family = family_of_type(model_type)
    stem = family.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    return type(f"{stem}Config", (PretrainedConfig,), {"model_type": family.model_type})


def from_located(located: Located, wanted: type[Self]) -> Self:
    """The configuration of what was found.

    Raises:
        ValueError: of another kind than wanted.
    """
    cls = config_class(located.values.get("model_type"))
    if wanted is not PretrainedConfig and not issubclass(cls, wanted):
        raise ValueError(
            f"{located.name} is a model of type {cls.model_type}, but {wanted.__name__} is for "
            f"{wanted.model_type}; use {cls.__name__} or AutoConfig"
        )
    if located.is_mindformers:
        config = cls(**{k: v for k, v in located.values.items() if k != "model_type"})
        config.name_or_path = located.name
    else:
        config = cls.from_dict(located.values, located.name)
        config.is_of_file = located.folder is not None
    return config  # type: ignore[return-value]


class GPT2Config(PretrainedConfig):
    """Configuration of GPT-2."""

    model_type = "gpt2"


class LlamaConfig(PretrainedConfig):
    """Configuration of Llama 1, 2 and 3."""

    model_type = "llama"


class Qwen2Config(PretrainedConfig):
    """Configuration of Qwen 2 and 2.5."""

    model_type = "qwen2"


class Qwen3Config(PretrainedConfig):
    """Configuration of Qwen 3."""

    model_type = "qwen3"


class MistralConfig(PretrainedConfig):
    """Configuration of Mistral."""

    model_type = "mistral"


class MixtralConfig(PretrainedConfig):
    """Configuration of Mixtral."""

    model_type = "mixtral"


class PanguAlphaConfig(PretrainedConfig):
    """Configuration of PanGu-alpha; the layer of learned queries counts as one of its layers."""

    model_type = "gpt_pangu"
