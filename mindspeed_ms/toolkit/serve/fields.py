# SPDX-License-Identifier: Apache-2.0
"""Fields of a request's JSON, taken out one by one; mistakes in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
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

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.any(name, default)
        if not isinstance(value, bool):
            raise wrong(name, f"{value!r} is not of type 'boolean' - '{name}'")
        return value

    def number(
        self, name: str, default: float | None, least: float | None, most: float | None
    ) -> float | None:
        """A number within bounds."""
        value = self.any(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise wrong(name, f"{value!r} is not of type 'number' - '{name}'")
        return _bounded(name, value, least, most)

    def integer(
        self, name: str, default: int | None, least: int | None = None, most: int | None = None
    ) -> int | None:
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

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self.any(name, ())
        if not isinstance(value, list | tuple) or not all(type(one) is int for one in value):
            raise wrong(name, f"{value!r} is no list of whole numbers - '{name}'")
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


def _bounded(name: str, value: Any, least: float | None, most: float | None) -> Any:
    if least is not None and value < least:
        raise wrong(name, f"{value} is less than the minimum of {least} - '{name}'")
    if most is not None and value > most:
        raise wrong(name, f"{value} is greater than the maximum of {most} - '{name}'")
    return value
