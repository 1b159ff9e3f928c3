# SPDX-License-Identifier: Apache-2.0
"""A family of models on the Hugging Face hub: its ``config.json``, its tensors, its sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import Sections, assemble
from mindspeed_ms.models.families.kinds import check_kinds
from mindspeed_ms.models.families.place import Place
from mindspeed_ms.models.families.rules import Fields, Rule, value_of
from mindspeed_ms.models.gpt import gpt_spec
from mindspeed_ms.models.identity import identity
from mindspeed_ms.models.model import ModelSpec

NEUTRAL = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "quantization_config",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "use_return_dict",
        "vocab_size",
    }
)
"""Keys that do not change what a model computes, or that are seen to elsewhere."""


def nothing_absent(theirs: Mapping[str, Any], names: Collection[str]) -> frozenset[str]:
    """No keys: the tensors are those that the ``config.json`` tells of."""
    return frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One kind of model there."""

    name: str
    model_type: str
    """Of its ``config.json``."""
    architecture: str
    """Class of ``transformers`` that holds it."""
    fixed: Mapping[str, Any]
    """``section.field`` -> value of what is alike in all its models."""
    rules: tuple[Rule, ...]
    places: Callable[[ModelSpec], Iterator[Place]]
    """Every tensor of a model."""
    absent: Callable[[Mapping[str, Any], Collection[str]], frozenset[str]] = nothing_absent
    """(``config.json``, names of all tensors) -> keys that the tensors do not follow; without
    names, keys of which that may be so."""
    prefix: str = ""
    """In front of the names of all tensors, where it may be missing in files."""
    neutral: frozenset[str] = frozenset()
    """Further keys that do not change what a model computes."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of a size -> its ``config.json``."""

    # --- config.json -> configuration -------------------------------------------------------------

    def sections(self, theirs: Mapping[str, Any]) -> Sections:
        """Sections of the configuration that a ``config.json`` amounts to.

        Raises:
            ValueError: a key is missing, or has a value that cannot be held here.
        """
        check_kinds(theirs)
        vocab_size = value_of(theirs, "vocab_size")
        fields: Fields = {"model_config.vocab_size": vocab_size, **self.fixed}
        for rule in self.rules:
            fields |= rule.read(theirs)
        return nested(fields)

    def config(self, theirs: Mapping[str, Any]) -> AllConfig:
        """The configuration that a ``config.json`` amounts to.

        Raises:
            ValueError: see ``sections``; or sizes that do not go together.
        """
        return assemble(self.sections(theirs))

    def unknown_keys(self, theirs: Mapping[str, Any]) -> list[str]:
        """Keys of a ``config.json`` that nothing here speaks for; they are kept, not used."""
        known = NEUTRAL | self.neutral
        for rule in self.rules:
            known |= rule.keys
        return sorted(theirs.keys() - known)

    # --- configuration -> config.json -------------------------------------------------------------

    def config_json(self, config: AllConfig, vocab_size: int) -> dict[str, Any]:
        """The ``config.json`` of a model.

        Args:
            config: the model.
            vocab_size: rows of its vocabulary there.
        """
        written: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": vocab_size,
        }
        for rule in self.rules:
            written |= rule.write(config)
        return written

    def misfits(self, config: AllConfig) -> list[str]:
        """What this family cannot hold of a model: ``field (value there, value here)``.

        A model that is written and read again must compute the same, so every option that changes
        that is compared.
        """
        wanted = identity(config)
        try:
            back = self.config(self.config_json(config, config.model_config.vocab_size))
        except ValueError as error:
            return [str(error)]
        found = identity(back)
        return [
            f"{name} ({found.get(name)!r} there, {value!r} here)"
            for name, value in wanted.items()
            if found.get(name) != value
        ]

    def full_name(self, name: str) -> str:
        """Name in a file that holds the head too, which stands outside of what has the prefix."""
        return name if name.startswith("lm_head.") else self.prefix + name

    def places_of(self, config: AllConfig, vocab_size: int) -> Iterator[Place]:
        """Every tensor of a model, with vocabularies of so many rows."""
        model = replace(config.model_config, vocab_size=vocab_size)
        return self.places(gpt_spec(model))


def nested(fields: Fields) -> Sections:
    """Sections from ``section.field`` (or ``section.block.field``) -> value."""
    sections: Sections = {}
    for path, value in fields.items():
        section, name, *deeper = path.split(".")
        place = sections.setdefault(section, {})
        if deeper:
            place.setdefault(name, {})[deeper[0]] = value
        else:
            place[name] = value
    return sections
