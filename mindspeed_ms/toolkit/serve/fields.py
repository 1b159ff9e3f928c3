# SPDX-License-Identifier: Apache-2.0
"""Fields of a request's JSON, taken out one by one; mistakes in OpenAI's form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


class ApiError(Exception):
    """An answer that says what was wrong.

    Args:
        status: of HTTP.
        message: for the user.
        param: the field that is wrong.
        code: OpenAI's word for it.
        kind: OpenAI's ``type``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {"message": message, "type": kind, "param": param, "code": code},
        }


def wrong(param: str, message: str, code: str | None = None) -> ApiError:
    """A 400 about a field."""
    return ApiError(400, message, param=param, code=code)


class Fields:
    """What a request says; ``finish`` refuses what nobody has taken.

    Args:
        body: the JSON object. A field that is null is as good as absent.

    Raises:
        ApiError: no object.
    """

    def __init__(self, body: Any) -> None:
        if not isinstance(body, Mapping):
            raise ApiError(400, "the request's body must be a JSON object")
        self._left = {name: value for name, value in body.items() if value is not None}

    def any(self, name: str, default: Any = None) -> Any:
        """A field as it is."""
        return self._left.pop(name, default)

    def peek(self, name: str) -> Any:
        """A field that stays to be taken."""
        return self._left.get(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.any(name, default)
        if not isinstance(value, bool):
            raise wrong(name, f"{value!r} is not of type 'boolean' - '{name}'")
        return value

    def number(self, name: str, default: float | None, least: float, most: float) -> float | None:
        """A number within bounds."""
        value = self.any(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise wrong(name, f"{value!r} is not of type 'number' - '{name}'")
        return _bounded(name, value, least, most)

    def integer(self, name: str, default: int | None, least: int, most: int) -> int | None:
        """A whole number within bounds."""
        value = self.any(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(name, f"{value!r} is not of type 'integer' - '{name}'")
        return _bounded(name, value, least, most)

    def texts(self, name: str) -> tuple[str, ...]:
        """A text, or a list of them; empty ones do not count."""
        value = self.any(name, ())
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise wrong(name, f"{value!r} is no text and no list of texts - '{name}'")
        return tuple(one for one in value if one)

    def tokens(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """A list of token ids."""
        value = self.any(name, ())
        if not isinstance(value, list | tuple) or not all(type(one) is int for one in value):
            raise wrong(name, f"{value!r} is no list of whole numbers - '{name}'")
        check_tokens(name, value, vocab_size)
        return tuple(value)

    def neutral(self, names: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
        """Take fields that must keep a value without effect: those values, and why."""
        for name, (values, reason) in names.items():
            value = self.any(name)
            if value is not None and value not in values:
                raise wrong(name, f"{name} is not served: {reason}", "unsupported_parameter")

    def finish(self) -> None:
        """Refuse fields that nobody knows."""
        if self._left:
            name = next(iter(self._left))
            raise wrong(name, f"Unrecognized request argument supplied: {name}")


def check_tokens(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    """Refuse what is no token.

    Raises:
        ApiError: names the first.
    """
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise wrong(name, f"token {token} is outside of the vocabulary of {vocab_size} tokens")


def _bounded(name: str, value: Any, least: float, most: float) -> Any:
    if value < least:
        raise wrong(name, f"{value} is less than the minimum of {least} - '{name}'")
    if value > most:
        raise wrong(name, f"{value} is greater than the maximum of {most} - '{name}'")
    return value
