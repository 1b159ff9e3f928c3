# SPDX-License-Identifier: Apache-2.0
"""Rotary positions in a ``config.json``: base, share of the channels, how they are stretched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mindspeed_ms.config import AllConfig, TransformerConfig
from mindspeed_ms.models.families.rules import Fields, value_of

_BLOCK = "model_config.rope_scaling"
_NAMES = {"su": "longrope"}
_LLAMA3: Mapping[str, Any] = {
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
"""Llama 3.1's form, which Megatron has a switch for."""

_ENTRIES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "linear": {"factor": 1.0},
    "dynamic": {"factor": 1.0},
    "llama3": {"factor": 1.0, **_LLAMA3},
    "yarn": {
        "factor": None,
        "original_max_position_embeddings": None,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 0.0,
        "mscale_all_dim": 0.0,
        "attention_factor": None,
        "truncate": True,
    },
    "longrope": {
        "factor": None,
        "original_max_position_embeddings": None,
        "short_factor": None,
        "long_factor": None,
        "attention_factor": None,
    },
}
"""Kind -> entry -> what a file without it means; None follows from lengths."""

_BESIDE = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"})
"""Entries that do not stretch."""


def stretching(theirs: Mapping[str, Any], scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``RopeScalingConfig`` that a ``rope_scaling`` amounts to.

    Raises:
        ValueError: positions are stretched in a way that is not known.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    kind = _NAMES.get(kind, kind)
    known = _ENTRIES.get(kind)
    unknown = [] if known is None else sorted(scaling.keys() - known.keys() - _BESIDE)
    if kind == "default":
        unknown = [key for key in unknown if key not in _ENTRIES["yarn"]]
    if known is None or unknown:
        raise ValueError(
            f"config.json stretches rotations by {dict(scaling)}; "
            + (f"{', '.join(unknown)} is not known there" if known else "")
            + ("" if known else f"{', '.join(_ENTRIES)} are known")
        )
    fields = {
        key: value for key, value in known.items() if value is not None and key not in scaling
    }
    fields |= {
        key: scaling[key] if scaling[key] is not None else known[key]
        for key in known
        if key in scaling
    }
    if "original_max_position_embeddings" in known:
        longest = value_of(theirs, "max_position_embeddings")
        # The key at the top wins, as in ``transformers`` 5.
        own = theirs.get("original_max_position_embeddings")
        own = own or scaling.get("original_max_position_embeddings") or longest
        fields["original_max_position_embeddings"] = own
        if fields.get("factor") is None:
            fields["factor"] = longest / own
    return {"rope_type": kind, **{k: v for k, v in fields.items() if v is not None}}


def scaling_of(model: TransformerConfig) -> dict[str, Any] | None:
    """The ``rope_scaling`` of a model; None: its positions are not stretched."""
    values = model.rope_stretching
    if not values.is_on:
        return None
    written = {key: value for key, value in values.values() if value is not None}
    if values.rope_type in ("llama3", "yarn", "longrope"):
        longest = model.max_position_embeddings or model.seq_length
        written.setdefault("original_max_position_embeddings", longest)
    if not (values.mscale and values.mscale_all_dim):
        written = {key: value for key, value in written.items() if not key.startswith("mscale")}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in written.items()}


@dataclass(frozen=True, slots=True)
class Rope:
    """Base and stretching, at the top or in ``rope_parameters`` (``transformers`` 5).

    Attributes:
        default_base: base of a file that names none.
        share: share of the channels that a file without the key rotates; None: all models rotate
            all of them.
        base_key: of the base, at the top.
        share_key: of the share, at the top.
        usual: what stretches in a file that says nothing of it.
    """

    default_base: float = 10000.0
    share: float | None = None
    base_key: str = "rope_theta"
    share_key: str = "partial_rotary_factor"
    usual: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> frozenset[str]:
        """Both spellings."""
        keys = {"rope_theta", self.base_key, "rope_scaling", "rope_parameters", self.share_key}
        return frozenset(keys)

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Base, share, and what stretches.

        Raises:
            ValueError: positions are stretched in a way that is not known.
        """
        nested = theirs.get("rope_parameters") or {}
        base = theirs.get(self.base_key) or nested.get("rope_theta") or self.default_base
        share = theirs.get(self.share_key) or nested.get("partial_rotary_factor")
        fields: Fields = {"model_config.rotary_base": float(base)}
        if self.share is not None:
            fields["model_config.rotary_percent"] = float(share or self.share)
        elif share not in (None, 1.0):
            raise ValueError(
                f"config.json has {self.share_key} {share}; models of this type rotate all channels"
            )
        return fields | _as_fields(
            stretching(theirs, theirs.get("rope_scaling") or nested or self.usual)
        )

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Spelled as in ``transformers`` 4, which version 5 reads too."""
        model = config.model_config
        written: dict[str, Any] = {self.base_key: model.rotary_base}
        if self.share is not None:
            written[self.share_key] = model.rotary_percent
        scaling = scaling_of(model)
        if scaling is not None or self.usual:
            written["rope_scaling"] = scaling or {"rope_type": "default"}
        return written


def _as_fields(block: Mapping[str, Any]) -> Fields:
    """Megatron's fields where it has some, else the block."""
    kind = block["rope_type"]
    if kind == "default":
        return {}
    if kind == "linear":
        return {"model_config.rotary_seq_len_interpolation_factor": float(block["factor"])}
    if kind == "llama3" and all(block[key] == value for key, value in _LLAMA3.items()):
        return {
            "model_config.use_rope_scaling": True,
            "model_config.rope_scaling_factor": float(block["factor"]),
        }
    return {f"{_BLOCK}.{key}": value for key, value in block.items()}
