"""Low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mindspeed_ms.config.section import Section


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig(Section):
    """Section ``lora_config``: which layers get an adapter and how large it is."""

    NAME: ClassVar[str] = "lora_config"

    use_lora: bool = False
    """Train small adapters beside frozen weights. False: train all weights."""

    lora_rank: int = 8
    """Inner width of an adapter."""

    lora_alpha: int = 32
    """Scale of an adapter's output, divided by lora_rank."""

    lora_dropout: float = 0.0
    """Probability of dropping an element of an adapter's input."""

    target_cells: tuple[dict[str, Any], ...] | None = None
    """``{target_cells: [regex, ...]}`` first, then optional ``{cell, rank, alpha}`` with other
    sizes. None: every linear layer.
    """

    def _check(self) -> None:
        self._require_at_least(1, "lora_rank", "lora_alpha")
        self._require_fraction("lora_dropout")
