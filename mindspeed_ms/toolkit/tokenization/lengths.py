# SPDX-License-Identifier: Apache-2.0
"""How long encoded texts become: truncation and padding.

Source: ``transformers`` 5.24 (what the arguments mean together; results are compared with it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.toolkit.given import shown, whole

UNLIMITED = int(1e30)
"""``model_max_length`` of a tokenizer that knows no limit."""

_LARGE = int(1e20)
_PADDING = {True: "longest", False: "do_not_pad", None: "do_not_pad"}
_TRUNCATION = {True: "longest_first", False: "do_not_truncate", None: "do_not_truncate"}
_SIDES = ("left", "right")


@dataclass(frozen=True)
class Lengths:
    """Truncation and padding of one call."""

    padding: str
    """``do_not_pad``, ``longest`` of the batch, or ``max_length``."""

    truncation: str
    """``do_not_truncate``, ``longest_first``, ``only_first`` or ``only_second``."""

    max_length: int | None
    """Tokens."""

    pad_to_multiple_of: int | None = None

    @property
    def pads(self) -> bool:
        """Whether anything is padded."""
        return self.padding != "do_not_pad"

    @property
    def truncates(self) -> bool:
        """Whether anything is cut off."""
        return self.truncation != "do_not_truncate"


def _chosen(name: str, value: bool | str | None, words: dict[Any, str], all_: tuple) -> str:
    chosen = (
        value
        if isinstance(value, str)
        else words.get(value if value is None or isinstance(value, bool) else name)
    )
    if not isinstance(chosen, str) or chosen not in all_:
        raise ValueError(f"{name} is {shown(value)}; use True, False, {', '.join(map(repr, all_))}")
    return chosen


def lengths_of(
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    pad_to_multiple_of: int | None,
    model_max_length: int,
) -> Lengths:
    """What the arguments of a call mean together.

    ``max_length`` alone truncates. Without it the model's own length is meant, and where that is
    unlimited, nothing is truncated or padded to it.

    Raises:
        ValueError: an unknown word, a negative length, or a length that is no multiple.
    """
    if max_length is not None and whole("max_length", max_length, -1) < 0:
        raise ValueError(f"max_length ({max_length}) must be at least 0 tokens")
    if max_length is not None and padding is False and truncation is None:
        truncation = "longest_first"
    pad = _chosen("padding", padding, _PADDING, ("longest", "max_length", "do_not_pad"))
    cut = _chosen(
        "truncation",
        truncation,
        _TRUNCATION,
        ("longest_first", "only_first", "only_second", "do_not_truncate"),
    )
    if max_length is None and (pad == "max_length" or cut != "do_not_truncate"):
        if model_max_length > _LARGE:
            pad = "do_not_pad" if pad == "max_length" else pad
            cut = "do_not_truncate"
        else:
            max_length = model_max_length
    found = Lengths(pad, cut, max_length, pad_to_multiple_of)
    if found.truncates and found.pads and pad_to_multiple_of and max_length is not None:
        if max_length % pad_to_multiple_of:
            raise ValueError(
                f"max_length ({max_length}) must be a multiple of pad_to_multiple_of "
                f"({pad_to_multiple_of}) when texts are both truncated and padded"
            )
    return found


def check_side(name: str, side: str) -> str:
    """A side, if it is one.

    Raises:
        ValueError: it is none.
    """
    if side not in _SIDES:
        raise ValueError(f"{name} is {side!r}; use 'left' or 'right'")
    return side


@dataclass(frozen=True)
class Filling:
    """What short texts are filled with."""

    side: str
    token_id: int
    token: str
    type_id: int


def set_on(
    backend: Any, lengths: Lengths, stride: int, truncation_side: str, filling: Filling | None
) -> None:
    """Tell the library how long texts shall become; ``filling`` is needed where it pads."""
    if lengths.truncates:
        backend.enable_truncation(
            max_length=lengths.max_length,
            stride=stride,
            strategy=lengths.truncation,
            direction=truncation_side,
        )
    elif backend.truncation is not None:
        backend.no_truncation()
    if lengths.pads:
        assert filling is not None, "the tokenizer looks for its pad token before it pads"
        backend.enable_padding(
            length=lengths.max_length if lengths.padding == "max_length" else None,
            direction=filling.side,
            pad_id=filling.token_id,
            pad_token=filling.token,
            pad_type_id=filling.type_id,
            pad_to_multiple_of=lengths.pad_to_multiple_of,
        )
    elif backend.padding is not None:
        backend.no_padding()


def pad_rows(
    rows: Mapping[str, Sequence[list[int]]],
    lengths: Lengths,
    side: str,
    fillers: Mapping[str, int],
) -> dict[str, list[list[int]]]:
    """Bring the rows of a batch to one length.

    Args:
        rows: name -> rows; rows of one number have one length under every name.
        lengths: ``longest`` or ``max_length``; longer rows stay as they are.
        side: where the filling goes.
        fillers: name -> what fills; rows under other names stay as they are.
    """
    counts = [len(row) for row in rows["input_ids"]]
    length = lengths.max_length if lengths.padding == "max_length" else max(counts, default=0)
    assert length is not None, "lengths_of sets a length wherever one is needed"
    multiple = lengths.pad_to_multiple_of
    if multiple:
        length = -(-length // multiple) * multiple

    def padded(row: list[int], filler: int) -> list[int]:
        filling = [filler] * (length - len(row))
        return [*row, *filling] if side == "right" else [*filling, *row]

    return {
        name: [padded(row, fillers[name]) for row in values] if name in fillers else list(values)
        for name, values in rows.items()
    }
