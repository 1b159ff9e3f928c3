# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mindspeed_ms.config.coercion import unknown_key
from mindspeed_ms.config.kinds import Count, Positive, Share
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

    lora_alpha: Positive = 32
    """Scale of an adapter's output, divided by lora_rank (by its root with use_rslora)."""

    lora_dropout: Share = 0.0
    """Probability of dropping an element of an adapter's input."""

    target_cells: tuple[dict[str, Any], ...] | None = None
    """``{target_cells: [regex, ...]}`` first, then optional ``{cell, rank, alpha}`` with other
    sizes. None: what target_modules says.
    """

    target_modules: str | tuple[str, ...] | None = None
    """Linear layers that get an adapter: last words of their names (of Hugging Face, MindFormers,
    Megatron or here), or one regular expression of whole names, or ``all-linear``. None: all.
    """

    exclude_layers: str | tuple[str, ...] | None = None
    """Those of target_modules that get none, in the same way."""

    layers_to_transform: tuple[int, ...] | None = None
    """Numbers of the transformer layers that get adapters, from 0. None: every layer."""

    rank_pattern: dict[str, Any] | None = None
    """Name, or regular expression of a name's end -> another lora_rank."""

    alpha_pattern: dict[str, Any] | None = None
    """Name, or regular expression of a name's end -> another lora_alpha."""

    use_rslora: bool = False
    """Divide lora_alpha by the root of the rank."""

    use_dora: bool = False
    """Train the length of the rows of adapted matrices, too."""

    neftune_noise_alpha: Positive | None = None
    """Uniform noise of at most this by the root of (tokens x channels) of a sequence is added to
    the embeddings in training. None: none.
    """

    base_model_name_or_path: str | None = None
    """Checkpoint of the frozen weights. None: what is loaded, or what the adapters' files name."""

    def _check(self) -> None:
        for item in self.target_cells or ():
            for key in item:
                if key not in _TARGET_KEYS:
                    raise unknown_key(f"{self.NAME}.target_cells", key, _TARGET_KEYS)
        for name in ("rank_pattern", "alpha_pattern"):
            for key, value in (getattr(self, name) or {}).items():
                is_number = isinstance(value, int if name == "rank_pattern" else int | float)
                if not is_number or isinstance(value, bool) or value <= 0:
                    raise ValueError(
                        f"{self.NAME}.{name} has {value!r} for {key!r}; give a number above 0"
                    )
        for pattern in self.patterns():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"{self.NAME} has {pattern!r}, which is no regular expression ({error})"
                ) from error

    def patterns(self) -> Iterator[str]:
        """Every regular expression of the section."""
        for item in self.target_cells or ():
            cells = item.get("target_cells", item.get("cell", ()))
            yield from (cells,) if isinstance(cells, str) else cells
        for value in (self.target_modules, self.exclude_layers):
            if isinstance(value, str):
                yield value
        yield from self.rank_pattern or ()
        yield from self.alpha_pattern or ()
