# SPDX-License-Identifier: Apache-2.0
"""Windows in a ``config.json``: how many tokens a query sees, and in which layers.

A ``sliding_window`` counts the query's own token: W there is ``window_size`` (W - 1, 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families.rules import Fields, value_of

SLIDING, FULL = "sliding_attention", "full_attention"


def window_fields(width: int, layers: list[bool]) -> Fields:
    """A window, in some layers."""
    fields: Fields = {"model_config.window_size": (width - 1, 0)}
    if not all(layers):
        fields["model_config.window_attn_skip_freq"] = tuple(map(int, layers))
    return fields


def window_width(config: AllConfig) -> int | None:
    """Tokens that a query sees; None: all, in every layer."""
    size = config.model_config.window_size
    return None if size is None or size[0] == -1 else size[0] + 1


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """``sliding_window`` of every layer, null for none.

    Attributes:
        default: what a file without the key means.
    """

    default: int | None = None

    @property
    def keys(self) -> frozenset[str]:
        """The one key."""
        return frozenset({"sliding_window"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The window."""
        width = theirs.get("sliding_window", self.default)
        return {} if width is None else window_fields(width, [True])

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Its width."""
        return {"sliding_window": window_width(config)}


@dataclass(frozen=True, slots=True)
class LateSlidingWindows:
    """``sliding_window``, if ``use_sliding_window``, of the layers from ``max_window_layers`` on.

    ``layer_types``, where it is given, says which layers have it.

    Attributes:
        width: of a file without the key.
        first: layer from which a file without the key has windows.
    """

    width: int = 4096
    first: int = 28

    @property
    def keys(self) -> frozenset[str]:
        """All four."""
        return frozenset(
            {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
        )

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The window and its layers.

        Raises:
            ValueError: a kind of layer that is not known.
        """
        types = known_types(theirs)
        if not theirs.get("use_sliding_window", False):
            return {}
        first = value_of(theirs, "max_window_layers", self.first)
        number = value_of(theirs, "num_hidden_layers")
        layers = [kind == SLIDING for kind in types]
        layers = layers or [layer >= first for layer in range(number)]
        width = theirs.get("sliding_window", self.width)
        return window_fields(width, layers) if width is not None and any(layers) else {}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Whether there are windows; if so, which."""
        width, model = window_width(config), config.model_config
        if width is None:
            return {"use_sliding_window": False}
        layers = [model.has_window(layer) for layer in range(model.num_layers)]
        first = layers.index(True) if any(layers) else model.num_layers
        return {
            "use_sliding_window": True,
            "sliding_window": width,
            "max_window_layers": first,
            "layer_types": [SLIDING if has else FULL for has in layers],
        }


@dataclass(frozen=True, slots=True)
class LateWindows:
    """``sliding_window`` of the layers from ``max_window_layers`` on, or of those in a list.

    Attributes:
        width: of a file without the key.
        first: layer from which a file without the key has windows.
    """

    width: int
    first: int

    @property
    def keys(self) -> frozenset[str]:
        """All three."""
        return frozenset({"sliding_window", "max_window_layers", "layer_types"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The window and its layers."""
        width = theirs.get("sliding_window", self.width)
        switched = {"sliding_window": width, "use_sliding_window": width is not None}
        return LateSlidingWindows(self.width, self.first).read({**theirs, **switched})

    def write(self, config: AllConfig) -> dict[str, Any]:
        """No window, or its layers."""
        written = LateSlidingWindows(self.width, self.first).write(config)
        return written if written.pop("use_sliding_window") else {"sliding_window": None}


@dataclass(frozen=True, slots=True)
class PatternOfWindows:
    """``sliding_window`` of the layers that ``layer_types`` names; else all but every n-th.

    Attributes:
        width: of a file without the key.
        every: n, where neither key nor list say it; None: all layers have it.
        is_first_whole: counting begins with the layers that have none, not with those that do.
    """

    width: int
    every: int | None
    is_first_whole: bool = False

    @property
    def keys(self) -> frozenset[str]:
        """All of them."""
        names = {"sliding_window", "layer_types", "sliding_window_pattern"}
        return frozenset(names | {"_sliding_window_pattern"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The window and its layers.

        Raises:
            ValueError: a kind of layer that is not known, or a pattern of letters alone.
        """
        number = value_of(theirs, "num_hidden_layers")
        every = theirs.get("sliding_window_pattern") or theirs.get("_sliding_window_pattern")
        every = every or self.every
        types = known_types(theirs)
        if isinstance(every, str) and not types:
            raise ValueError(
                f"config.json has sliding_window_pattern {every!r} without layer_types; give those"
            )
        layers = [kind == SLIDING for kind in types]
        places = range(number) if self.is_first_whole else range(1, number + 1)
        layers = layers or [not every or place % every != 0 for place in places]
        width = theirs.get("sliding_window", self.width)
        return window_fields(width, layers) if width and any(layers) else {}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The window, and a list of layers."""
        width, model = window_width(config), config.model_config
        layers = [model.has_window(layer) for layer in range(model.num_layers)]
        return {
            "sliding_window": width,
            "layer_types": [SLIDING if width and has else FULL for has in layers],
        }


@dataclass(frozen=True, slots=True)
class RotatedWindows:
    """Windows of the layers that ``layer_types`` names; where there is a width, these rotate.

    Attributes:
        rotates_without: all layers rotate where there is no width. Else none does.
        width: of a file without the key.
        every: every n-th layer has no window in a file that does not say.
    """

    rotates_without: bool
    width: int = 4096
    every: int = 4

    @property
    def keys(self) -> frozenset[str]:
        """Those of windows in some layers."""
        return self._windows.keys

    @property
    def _windows(self) -> PatternOfWindows:
        return PatternOfWindows(self.width, self.every)

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Which layers have a window; the others do not rotate, if there is a width.

        Raises:
            ValueError: a pattern of letters alone, or windows without a width.
        """
        number = value_of(theirs, "num_hidden_layers")
        width = theirs.get("sliding_window", self.width)
        if width is None and SLIDING in known_types(theirs):
            raise ValueError(
                f"config.json has {SLIDING} among its layer_types, but no sliding_window; give one"
            )
        fields = {} if width is None else self._windows.read(theirs)
        has_any = "model_config.window_size" in fields or (width is None and self.rotates_without)
        windows = fields.get("model_config.window_attn_skip_freq", [int(has_any)] * number)
        if not all(windows):
            fields["model_config.no_rope_freq"] = tuple(1 - has for has in windows)
        return fields

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The windows; the round trip shows whether the others are those that do not rotate."""
        model = config.model_config
        written = self._windows.write(config)
        if not any(map(model.rotates, range(model.num_layers))):
            written["sliding_window"] = written["sliding_window"] or self.width
        return written


def known_types(theirs: Mapping[str, Any]) -> list[str]:
    """The ``layer_types``, empty if there are none.

    Raises:
        ValueError: a kind of layer that is not known.
    """
    types = list(theirs.get("layer_types") or ())
    unknown = set(types) - {SLIDING, FULL}
    if unknown:
        raise ValueError(
            f"config.json has layer_types {sorted(unknown)}; {SLIDING} and {FULL} are known"
        )
    return types
