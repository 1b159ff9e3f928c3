"""Rotary positions in a ``config.json``: base, share of the channels, how they are stretched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families.rules import Fields

LLAMA3: Mapping[str, Any] = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Entries of Llama 3.1's stretching, beside its factor."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Base and stretching, at the top or in ``rope_parameters`` (``transformers`` 5).

    Attributes:
        default_base: base of a file that names none.
    """

    default_base: float = 10000.0

    @property
    def keys(self) -> frozenset[str]:
        """Both spellings."""
        return frozenset({"rope_theta", "rope_scaling", "rope_parameters"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Base, and what stretches.

        Raises:
            ValueError: positions are stretched in a way that is not known.
        """
        nested = theirs.get("rope_parameters") or {}
        base = theirs.get("rope_theta") or nested.get("rope_theta") or self.default_base
        scaling = theirs.get("rope_scaling") or nested
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        fields: Fields = {"model_config.rotary_base": float(base)}
        if kind == "default":
            return fields
        if kind == "linear":
            factor = float(scaling["factor"])
            return {**fields, "model_config.rotary_seq_len_interpolation_factor": factor}
        if all(scaling.get(key) == value for key, value in LLAMA3.items()):
            return {
                **fields,
                "model_config.use_rope_scaling": True,
                "model_config.rope_scaling_factor": float(scaling["factor"]),
            }
        raise ValueError(
            f"config.json stretches rotations by {dict(scaling)}; linear scaling and Llama 3.1's "
            f"form {dict(LLAMA3)} are known"
        )

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Spelled as in ``transformers`` 4, which version 5 reads too."""
        model = config.model_config
        written: dict[str, Any] = {"rope_theta": model.rotary_base}
        if model.use_rope_scaling:
            written["rope_scaling"] = {**LLAMA3, "factor": model.rope_scaling_factor}
        elif model.rotary_seq_len_interpolation_factor is not None:
            factor = model.rotary_seq_len_interpolation_factor
            written["rope_scaling"] = {"rope_type": "linear", "factor": float(factor)}
        return written
