"""Low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mindspeed_ms.config.coercion import unknown_key
from mindspeed_ms.config.kinds import Count, Share
from mindspeed_ms.config.section import Section

_TARGET_KEYS = ("target_cells", "cell", "rank", "alpha")
"""Keys of an item of target_cells."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    """Section ``lora_config``: which layers get an adapter and how large it is."""

    NAME: ClassVar[str] = "lora_config"

    use_lora: bool = False
    """Train small adapters beside frozen weights. False: train all weights."""

    lora_rank: Count = 8
    """Inner width of an adapter."""

    lora_alpha: Count = 32
    """Scale of an adapter's output, divided by lora_rank."""

    lora_dropout: Share = 0.0
    """Probability of dropping an element of an adapter's input."""

    target_cells: tuple[dict[str, Any], ...] | None = None
    """``{target_cells: [regex, ...]}`` first, then optional ``{cell, rank, alpha}`` with other
    sizes. None: every linear layer.
    """

    def _check(self) -> None:
        for item in self.target_cells or ():
            for key in item:
                if key not in _TARGET_KEYS:
                    raise unknown_key(f"{self.NAME}.target_cells", key, _TARGET_KEYS)
