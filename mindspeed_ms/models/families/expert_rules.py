# SPDX-License-Identifier: Apache-2.0
"""Experts in a ``config.json``: which layers have them, how they are chosen and weighed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families.rules import REQUIRED, Fields, Key, Rule, value_of

NUM_EXPERTS = "moe_config.num_experts"

BALANCE = Key("router_aux_loss_coef", "moe_config.moe_aux_loss_coeff", 0.001, float)

JITTER = Key(
    "router_jitter_noise",
    "moe_config.moe_input_jitter_eps",
    0.0,
    lambda noise: noise or None,
    lambda noise: noise or 0.0,  # transformers refuses null
)


@dataclass(frozen=True, slots=True)
class Normed:
    """Whether the weights of the chosen experts are made to sum to 1.

    Attributes:
        theirs: the key; None: they always are.
        default: of a file without the key.
        has_single_scores: each expert's score is a sigmoid of its own. Else it is a share of all,
            and shares that are made to sum to 1 are a softmax over the chosen experts.
    """

    theirs: str | None = "norm_topk_prob"
    default: bool = False
    has_single_scores: bool = False

    @property
    def keys(self) -> frozenset[str]:
        """The key, if there is one."""
        return frozenset() if self.theirs is None else frozenset({self.theirs})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """What is taken from the scores; a single expert weighs 1 where the sum does."""
        is_normed = self.theirs is None or bool(value_of(theirs, self.theirs, self.default))
        fields: Fields = {}
        if not self.has_single_scores:
            fields["moe_config.moe_router_pre_softmax"] = not is_normed
        elif not is_normed:
            fields["moe_config.moe_router_weights"] = "scores"
        if is_normed and theirs.get("num_experts_per_tok") == 1:
            fields["moe_config.moe_router_weights"] = "normalized"
        return fields

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The switch."""
        return {} if self.theirs is None else {self.theirs: config.moe_config.normalizes_weights}


NORMED = Normed()


def experts(number: str, width: str = "moe_intermediate_size") -> tuple[Rule, ...]:
    """Number, width and choices of experts; keys of the first two."""
    return (
        OneOf((number, "num_experts", "num_local_experts"), NUM_EXPERTS),
        Key(width, "moe_config.moe_ffn_hidden_size"),
        Key("num_experts_per_tok", "moe_config.moe_router_topk"),
    )


@dataclass(frozen=True, slots=True)
class OneOf:
    """A field that files spell in several ways; the first is written.

    Attributes:
        spellings: keys.
        ours: ``section.field``.
        default: what a file without any of them means.
    """

    spellings: tuple[str, ...]
    ours: str
    default: Any = REQUIRED

    @property
    def keys(self) -> frozenset[str]:
        """All spellings."""
        return frozenset(self.spellings)

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The field.

        Raises:
            ValueError: no spelling is there, or there is a single expert.
        """
        given = next((key for key in self.spellings if theirs.get(key) is not None), None)
        number = value_of(theirs, given or self.spellings[0], self.default)
        if number == 1 and self.ours == NUM_EXPERTS:
            raise ValueError(
                f"config.json has {given} 1; a router here chooses among 2 experts or more"
            )
        return {self.ours: number}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The first spelling."""
        return Key(self.spellings[0], self.ours).write(config)


def layers_with_experts(config: AllConfig) -> list[bool]:
    """Whether each layer has experts."""
    model = config.model_config
    return [model.has_experts(layer) for layer in range(model.num_layers)]


def frequency(layers: list[bool]) -> Fields:
    """The field that says which layers have experts."""
    return {"moe_config.moe_layer_freq": 1 if all(layers) else tuple(map(int, layers))}


@dataclass(frozen=True, slots=True)
class SparseSteps:
    """Every n-th layer has experts, without those of a list."""

    keys: frozenset[str] = frozenset({"decoder_sparse_step", "mlp_only_layers"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The layers."""
        step = value_of(theirs, "decoder_sparse_step", 1)
        dense = theirs.get("mlp_only_layers") or ()
        number = value_of(theirs, "num_hidden_layers")
        return frequency(
            [(layer + 1) % step == 0 and layer not in dense for layer in range(number)]
        )

    def write(self, config: AllConfig) -> dict[str, Any]:
        """A list of those without."""
        dense = [layer for layer, has in enumerate(layers_with_experts(config)) if not has]
        return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


@dataclass(frozen=True, slots=True)
class DenseFirst:
    """The first layers have no experts.

    Attributes:
        default: how many, in a file that does not say.
    """

    default: int = 0
    keys: frozenset[str] = frozenset({"first_k_dense_replace"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The layers."""
        first = value_of(theirs, "first_k_dense_replace", self.default)
        number = value_of(theirs, "num_hidden_layers")
        return frequency([layer >= first for layer in range(number)])

    def write(self, config: AllConfig) -> dict[str, Any]:
        """How many have none; the round trip shows whether these are all."""
        layers = layers_with_experts(config)
        return {"first_k_dense_replace": layers.index(True) if any(layers) else len(layers)}


@dataclass(frozen=True, slots=True)
class ListedBlocks:
    """``mlp_layer_types`` says which layers have experts; without it the first ones have none.

    Attributes:
        first: layers without experts where a file says neither.
    """

    first: int

    @property
    def keys(self) -> frozenset[str]:
        """The list, and the number."""
        return frozenset({"first_k_dense_replace", "mlp_layer_types"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The layers.

        Raises:
            ValueError: a list of another length, or with other words.
        """
        number = value_of(theirs, "num_hidden_layers")
        first = value_of(theirs, "first_k_dense_replace", self.first)
        words = {True: "sparse", False: "dense"}
        listed = theirs.get("mlp_layer_types")
        types = listed or [words[layer >= first] for layer in range(number)]
        if len(types) != number or set(types) - {"sparse", "dense"}:
            raise ValueError(
                f"config.json has mlp_layer_types {types}; it is dense or sparse for each of the "
                f"{number} layers"
            )
        return frequency([kind == "sparse" for kind in types])

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Both, which say the same."""
        layers = layers_with_experts(config)
        types = ["sparse" if has else "dense" for has in layers]
        return {**DenseFirst().write(config), "mlp_layer_types": types}


@dataclass(frozen=True, slots=True)
class Shared:
    """So many experts of the usual width that every token passes; they are one here.

    Attributes:
        default: how many, in a file that does not say.
        theirs: the key.
        width: of one, in a file that does not say.
    """

    default: int = 0
    theirs: str = "n_shared_experts"
    width: Any = REQUIRED

    @property
    def keys(self) -> frozenset[str]:
        """The one key."""
        return frozenset({self.theirs})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Their total width."""
        number = theirs.get(self.theirs, self.default)
        width = value_of(theirs, "moe_intermediate_size", self.width)
        return {
            "moe_config.moe_shared_expert_intermediate_size": number * width if number else None
        }

    def write(self, config: AllConfig) -> dict[str, Any]:
        """How many; the round trip shows whether they are whole ones."""
        moe = config.moe_config
        width = moe.moe_ffn_hidden_size or config.model_config.ffn_hidden_size or 1
        return {self.theirs: (moe.moe_shared_expert_intermediate_size or 0) // width}


@dataclass(frozen=True, slots=True)
class Groups:
    """Experts are chosen from the best groups only.

    Attributes:
        scores: best experts of a group whose scores are those of the group.
        method: value of ``topk_method`` that groups need; None: groups are always used.
        usual: groups, and those taken, in a file that does not say.
    """

    scores: int
    method: str | None = None
    usual: tuple[int | None, int | None] = (None, None)

    @property
    def keys(self) -> frozenset[str]:
        """Numbers of groups, and the method."""
        return frozenset({"n_group", "topk_group", "topk_method"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The groups; all of them are none.

        Raises:
            ValueError: another method.
        """
        method = theirs.get("topk_method")
        known = ("noaux_tc", None) if self.method is None else (self.method, "greedy", None)
        if method not in known:
            raise ValueError(f"config.json has topk_method {method!r}; {known[:-1]} are supported")
        groups, taken = (
            theirs.get(key, usual)
            for key, usual in zip(("n_group", "topk_group"), self.usual, strict=True)
        )
        is_used = self.method is None or method == self.method
        if not is_used or not groups or not taken or groups == taken:
            return {}
        return {
            "moe_config.moe_router_num_groups": groups,
            "moe_config.moe_router_group_topk": taken,
            "moe_config.moe_router_group_scores": self.scores,
        }

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The groups, and the method where it tells."""
        moe = config.moe_config
        groups, taken = moe.moe_router_num_groups or 1, moe.moe_router_group_topk or 1
        written: dict[str, Any] = {"n_group": groups, "topk_group": taken}
        if self.method is not None:
            written["topk_method"] = self.method if groups > 1 else "greedy"
        return written
