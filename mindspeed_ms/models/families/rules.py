# SPDX-License-Identifier: Apache-2.0
"""How keys of a ``config.json`` and fields of the configuration here correspond, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.gpt import activation_of, softmax_scale

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
        is_nullable: null in a file does not mean the default but None, as in that class.
    """

    theirs: str
    ours: str
    default: Any = REQUIRED
    reads: Callable[[Any], Any] = same
    writes: Callable[[Any], Any] = same
    is_nullable: bool = False

    @property
    def keys(self) -> frozenset[str]:
        """The one key."""
        return frozenset({self.theirs})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The one field."""
        default = None if self.is_nullable and self.theirs in theirs else self.default
        return {self.ours: self.reads(value_of(theirs, self.theirs, default))}

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
        value = theirs.get(self.theirs)
        value = self.default if value is None else value
        if value not in self.allowed:
            names = " or ".join(map(repr, self.allowed))
            raise ValueError(f"config.json has {self.theirs} {value!r}; only {names} is supported")
        return {}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The first allowed value."""
        return {self.theirs: self.allowed[0]}


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads, key/value heads and their width.

    Attributes:
        heads: key of the first.
        groups: key of the second; None: as many as heads.
        width: key of the third; None: it follows.
        hidden: key of the hidden size, from which the width follows.
        default_groups: of a file without the key; None: as many as heads.
        default_width: of a file without the key; None: it follows.
    """

    heads: str = "num_attention_heads"
    groups: str | None = "num_key_value_heads"
    width: str | None = "head_dim"
    hidden: str = "hidden_size"
    default_groups: int | None = None
    default_width: int | None = None

    @property
    def keys(self) -> frozenset[str]:
        """All three."""
        return frozenset(key for key in (self.heads, self.groups, self.width) if key)

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Heads, groups and channels."""
        heads = value_of(theirs, self.heads)
        usual = self.default_groups if heads % (self.default_groups or 1) == 0 else None
        groups = theirs.get(self.groups, usual) if self.groups else None
        hidden = value_of(theirs, self.hidden)
        width = theirs.get(self.width, self.default_width) if self.width else None
        if width is None and hidden % heads:
            raise ValueError(
                f"config.json has {self.hidden} {hidden} and {self.heads} {heads}; the first must "
                "be a multiple of the second"
            )
        groups, width = groups or heads, width or hidden // heads
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


_ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "fast_gelu",
    "gelu_pytorch_tanh": "fast_gelu",
    "gelu_fast": "fast_gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "squared_relu",
}
"""Their name -> ours."""


@dataclass(frozen=True, slots=True)
class Activation:
    """What is done between the two matrices of a block, or to the gate of a gated one.

    Attributes:
        theirs: the key.
        default: what a file without the key means.
        is_gated: blocks are gated.
        tanh: which of its names gelu's approximation is written by.
    """

    theirs: str = "hidden_act"
    default: str = "silu"
    is_gated: bool = True
    tanh: str = "gelu_pytorch_tanh"

    @property
    def keys(self) -> frozenset[str]:
        """The one key."""
        return frozenset({self.theirs})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The activation.

        Raises:
            ValueError: there is none of this name.
        """
        name = value_of(theirs, self.theirs, self.default)
        held = [key for key, is_ours in _ACTIVATIONS.items() if self._is_held(is_ours)]
        if name not in held:
            raise ValueError(
                f"config.json has {self.theirs} {name!r}; {', '.join(held)} are supported"
            )
        ours = _ACTIVATIONS[name]
        return {
            "model_config.hidden_act": "swiglu" if self.is_gated and ours == "silu" else ours,
            "model_config.gated_linear_unit": self.is_gated,
        }

    def _is_held(self, ours: str) -> bool:
        """Blocks that are gated have no form of this one."""
        return not (self.is_gated and ours == "squared_relu")

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The name there."""
        name = activation_of(config.model_config)
        return {self.theirs: {"fast_gelu": self.tanh, "squared_relu": "relu2"}.get(name, name)}


@dataclass(frozen=True, slots=True)
class Follows:
    """A field that follows from their keys, for which there is none.

    Attributes:
        ours: ``section.field``.
        value: of their keys.
    """

    ours: str
    value: Callable[[Mapping[str, Any]], Any]
    keys: frozenset[str] = frozenset()

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The field."""
        return {self.ours: self.value(theirs)}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """Factor of queries times keys.

    Attributes:
        theirs: the key.
        default: of a file without it, which may follow from other keys.
        is_width: the key is the number whose reciprocal root the factor is.
    """

    theirs: str
    default: float | Callable[[Mapping[str, Any]], float]
    is_width: bool = False

    @property
    def keys(self) -> frozenset[str]:
        """The one key."""
        return frozenset({self.theirs})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The factor, or the number."""
        default = self.default(theirs) if callable(self.default) else self.default
        name = "query_pre_attn_scalar" if self.is_width else "softmax_scale"
        return {f"model_config.{name}": float(value_of(theirs, self.theirs, default))}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Whole numbers are written as such."""
        model = config.model_config
        value = softmax_scale(model)
        if self.is_width:
            width = model.query_pre_attn_scalar
            width = model.kv_channels if width is None and model.softmax_scale is None else width
            value = float(width or value**-2)
        return {self.theirs: int(value) if value == int(value) else value}


def with_rules(rules: tuple[Rule, ...], *others: Rule) -> tuple[Rule, ...]:
    """Rules of a relative: others in place of those that speak for a key of theirs."""
    spoken = frozenset().union(*(rule.keys for rule in others))
    return (*(rule for rule in rules if not rule.keys & spoken), *others)


def norms_of_heads(key: str) -> Biases:
    """A switch for norms of queries and keys whose heads have factors of their own."""
    return Biases(key, ("model_config.qk_layernorm", "model_config.qk_layernorm_per_head"))


def tied_head(default: bool) -> Key:
    """Whether the head is the table of embeddings, by ``tie_word_embeddings``."""
    path = "model_config.untie_embeddings_and_output_weights"
    return Key("tie_word_embeddings", path, default, opposite, opposite)


def reciprocal(value: float) -> float:
    """A factor that is a divisor there, or the other way round."""
    return 1.0 / value


def opposite(value: bool) -> bool:
    """A switch that is named the other way round there."""
    return not value
