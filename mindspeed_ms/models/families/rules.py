"""How keys of a ``config.json`` and fields of the configuration here correspond, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mindspeed_ms.config import AllConfig

REQUIRED: Any = object()
"""No default: the key must be there."""

Fields = dict[str, Any]
"""``section.field`` -> value."""


def same(value: Any) -> Any:
    """A value that is written alike on both sides."""
    return value


class Rule(Protocol):
    """One correspondence."""

    @property
    def keys(self) -> frozenset[str]:
        """Keys of theirs that it speaks for."""

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Fields that their keys amount to.

        Raises:
            ValueError: a value that cannot be held here.
        """

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Their keys that the configuration amounts to."""


def field_of(config: AllConfig, path: str) -> Any:
    """Value of ``section.field`` (or deeper)."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


@dataclass(frozen=True, slots=True)
class Key:
    """A key that is a field.

    Attributes:
        theirs: the key.
        ours: ``section.field``.
        default: what a file without the key means, as in the class of ``transformers``.
        reads: their value -> ours.
        writes: our value -> theirs.
    """

    theirs: str
    ours: str
    default: Any = REQUIRED
    reads: Callable[[Any], Any] = same
    writes: Callable[[Any], Any] = same

    @property
    def keys(self) -> frozenset[str]:
        """The one key."""
        return frozenset({self.theirs})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The one field."""
        return {self.ours: self.reads(value_of(theirs, self.theirs, self.default))}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The one key."""
        return {self.theirs: self.writes(field_of(config, self.ours))}


def value_of(theirs: Mapping[str, Any], key: str, default: Any = REQUIRED) -> Any:
    """Value of a key.

    Raises:
        ValueError: it is missing and has no default.
    """
    value = theirs.get(key)
    if value is not None:
        return value
    if default is REQUIRED:
        raise ValueError(f"config.json has no {key}; every model of this type needs it")
    return default


@dataclass(frozen=True, slots=True)
class Only:
    """A key of which only some values can be held here; the first of them is written.

    Attributes:
        theirs: the key.
        allowed: values that mean the same.
        default: what a file without the key means.
    """

    theirs: str
    allowed: tuple[Any, ...]
    default: Any = None

    @property
    def keys(self) -> frozenset[str]:
        """The one key."""
        return frozenset({self.theirs})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Nothing; the value is checked."""
        value = theirs.get(self.theirs, self.default)
        if value not in self.allowed:
            names = " or ".join(map(repr, self.allowed))
            raise ValueError(f"config.json has {self.theirs} {value!r}; only {names} is supported")
        return {}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The first allowed value."""
        return {self.theirs: self.allowed[0]}


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads, key/value heads and their width."""

    heads: str = "num_attention_heads"
    groups: str | None = "num_key_value_heads"
    width: str | None = "head_dim"
    hidden: str = "hidden_size"

    @property
    def keys(self) -> frozenset[str]:
        """All three."""
        return frozenset(key for key in (self.heads, self.groups, self.width) if key)

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Heads, groups and channels."""
        heads = value_of(theirs, self.heads)
        groups = value_of(theirs, self.groups, heads) if self.groups else heads
        hidden = value_of(theirs, self.hidden)
        given = theirs.get(self.width) if self.width else None
        if given is None and hidden % heads:
            raise ValueError(
                f"config.json has {self.hidden} {hidden} and {self.heads} {heads}; the first must "
                "be a multiple of the second"
            )
        width = hidden // heads if given is None else given
        return {
            "model_config.num_attention_heads": heads,
            "model_config.group_query_attention": groups != heads,
            "model_config.num_query_groups": groups,
            "model_config.kv_channels": width,
        }

    def write(self, config: AllConfig) -> dict[str, Any]:
        """All three keys."""
        model = config.model_config
        values = {
            self.heads: model.num_attention_heads,
            self.groups: model.num_kv_groups,
            self.width: model.kv_channels,
        }
        return {key: value for key, value in values.items() if key}


@dataclass(frozen=True, slots=True)
class Length:
    """The longest sequence, which is also the length of training sequences unless that is given."""

    theirs: str = "max_position_embeddings"
    default: Any = REQUIRED

    @property
    def keys(self) -> frozenset[str]:
        """The one key."""
        return frozenset({self.theirs})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Both lengths."""
        length = value_of(theirs, self.theirs, self.default)
        return {
            "model_config.max_position_embeddings": length,
            "model_config.seq_length": length,
        }

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The longest."""
        model = config.model_config
        return {self.theirs: model.max_position_embeddings or model.seq_length}


@dataclass(frozen=True, slots=True)
class Biases:
    """A switch for biases of several matrices.

    Attributes:
        theirs: the key, None where the family has no choice.
        ours: fields that it switches.
        default: what a file without the key means.
    """

    theirs: str
    ours: tuple[str, ...]
    default: bool = False

    @property
    def keys(self) -> frozenset[str]:
        """The one key."""
        return frozenset({self.theirs})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """All fields alike."""
        return dict.fromkeys(self.ours, bool(value_of(theirs, self.theirs, self.default)))

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The first field's value; the round trip shows whether the others agree."""
        return {self.theirs: field_of(config, self.ours[0])}
