# SPDX-License-Identifier: Apache-2.0
"""What the words of a command line become: each function reads one word or raises ValueError."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.dtypes import parse_dtype
from mindspeed_ms.config.kinds import MOST_LAYERS, MOST_RANKS

RULES: Mapping[str, str] = MappingProxyType(
    {
        "int": "a whole number",
        "float": "a number",
        "ranks": f"a whole number from 1 to {MOST_RANKS}",
        "count": "a whole number from 1",
        "natural": "a whole number from 0",
        "positive": "a number above 0",
        "floats": "numbers with commas between, as 0.5,0.25",
        "parse_bool": "true or false",
        "dtype": "float32, bfloat16 or float16",
        "sides": "a whole number, or two as 128,0",
        "number_or_list": "a whole number, or a list as [0,1,1] or ([0]*3+[1]*58)",
    }
)
"""Name that ``argparse`` tells of a function here -> what it reads."""

_GROUPS = re.compile(r"[+-]?[0-9]{1,3}(_[0-9]{3})+")
_WHOLE = re.compile(r"[-+]?[0-9]{1,19}")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def whole(text: str) -> int:
    """Read a whole number in plain decimal digits, perhaps in groups of three: ``126_953_125``.

    Raises:
        ValueError: anything else, also ``10_00`` and more than 64 bits.

    """
    stripped = text.strip()
    if _GROUPS.fullmatch(stripped):
        stripped = stripped.replace("_", "")
    if not _WHOLE.fullmatch(stripped) or abs(int(stripped)) >= 2**63:
        raise ValueError(text)
    return int(stripped)


def decimal(text: str) -> float:
    """Read a finite number in plain decimal notation.

    Raises:
        ValueError: anything else, also ``inf``, ``nan`` and ``1_000.0``.

    """
    stripped = text.strip()
    if not _DECIMAL.fullmatch(stripped) or not math.isfinite(float(stripped)):
        raise ValueError(text)
    return float(stripped)


def ranks(text: str) -> int:
    """Read a number of ranks.

    Raises:
        ValueError: less than one, or more than any cluster has.

    """
    number = whole(text)
    if not 1 <= number <= MOST_RANKS:
        raise ValueError(text)
    return number


def count(text: str) -> int:
    """Read a whole number from 1.

    Raises:
        ValueError: anything else.

    """
    number = whole(text)
    if number < 1:
        raise ValueError(text)
    return number


def natural(text: str) -> int:
    """Read a whole number from 0.

    Raises:
        ValueError: anything else.

    """
    number = whole(text)
    if number < 0:
        raise ValueError(text)
    return number


def positive(text: str) -> float:
    """Read a number above 0.

    Raises:
        ValueError: anything else.

    """
    number = decimal(text)
    if number <= 0:
        raise ValueError(text)
    return number


def floats(text: str) -> list[float]:
    """Read numbers with commas between, with or without brackets.

    Raises:
        ValueError: anything else.

    """
    return [decimal(word) for word in text.strip().strip("[]()").split(",")]


def parse_bool(text: str) -> bool:
    """Read ``true`` or ``false``.

    Raises:
        ValueError: any other word.

    """
    word = text.strip().lower()
    if word in ("true", "yes", "1", "on"):
        return True
    if word in ("false", "no", "0", "off"):
        return False
    raise ValueError(text)


def bool_or_word(text: str) -> bool | str:
    """Read ``true``, ``false`` or another word as it is."""
    try:
        return parse_bool(text)
    except ValueError:
        return text


def dtype(text: str) -> Any:
    """Read the name of a data type."""
    return parse_dtype(text)


def unescaped(text: str) -> str:
    """Return a text without the backslashes and quotes that protected it from a shell."""
    return text.replace("\\", "").strip("\"'")


def sides(text: str) -> list[int]:
    """Read ``128``, ``128,0`` or ``(128,0)``.

    Raises:
        ValueError: anything else.

    """
    return [whole(word) for word in text.strip().removeprefix("(").removesuffix(")").split(",")]


def number_or_list(text: str) -> int | list[int] | str:
    """Read ``3``, ``[0,1,1]`` or an expression such as ``([0]*3+[1]*58)``.

    A closing bracket at the end that was lost between shells is added.

    Raises:
        ValueError: neither a number nor a list expression.

    """
    stripped = text.strip()
    if _WHOLE.fullmatch(stripped):
        return whole(stripped)
    return eval_list(stripped + ")" * max(0, stripped.count("(") - stripped.count(")")))


def eval_list(text: str) -> list[int]:
    """Evaluate a list expression of integers, ``+`` and ``*`` without running code.

    Raises:
        ValueError: anything else, or a list longer than any list of layers.

    """
    wrong = ValueError(f"{text[:100]!r} is no list expression")
    try:
        result = _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise wrong from error
    if not isinstance(result, list):
        raise wrong
    return result


def _evaluate(node: ast.expr) -> Any:
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_evaluate(item) for item in items]
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return number
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _bounded(_evaluate(left), _evaluate(right), "+")
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _bounded(_evaluate(left), _evaluate(right), "*")
    raise TypeError(type(node).__name__)


def _bounded(left: Any, right: Any, operation: str) -> Any:
    """Add or multiply, unless the list would become too long."""
    sizes = [len(part) if isinstance(part, list) else abs(part) for part in (left, right)]
    size = sizes[0] + sizes[1] if operation == "+" else sizes[0] * sizes[1]
    if size > MOST_LAYERS:
        raise ValueError("too long")
    return left + right if operation == "+" else left * right
