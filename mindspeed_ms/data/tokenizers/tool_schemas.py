# SPDX-License-Identifier: Apache-2.0
"""A Python function as the JSON schema that chat templates show a model.

Source: ``transformers`` 5.24 ``get_json_schema`` (the schema of a signature; compared with it).
"""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_SCALARS = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
}
_CONTAINERS = {list: "array", tuple: "array", dict: "object"}
_SECTION = re.compile(r"^(Args|Returns|Raises):[ \t]*$", re.MULTILINE)
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def schema_of(function: Callable[..., Any]) -> Schema:
    """Describe a function from its signature and its Google docstring.

    Every argument needs a type and a description; ``(choices: ["a", "b"])`` at the end of a
    description lists the values it may have.

    Raises:
        ValueError: something is not described, or has a type that JSON does not know.
    """
    name = getattr(function, "__name__", "operation")
    text = inspect.getdoc(function)
    if not text:
        raise ValueError(f"tool {name} has no docstring, which tells a model what it is for")
    sections = _sections(text)
    described = _arguments(sections.get("Args", ""))
    hints = typing.get_type_hints(function)
    properties: Schema = {}
    required = []
    for parameter in _parameters(function):
        if parameter.name not in hints:
            raise ValueError(f"argument {parameter.name} of tool {name} has no type")
        if parameter.name not in described:
            raise ValueError(f"argument {parameter.name} of tool {name} is not described in Args")
        schema = _of_type(hints[parameter.name], f"argument {parameter.name} of tool {name}")
        description = described[parameter.name]
        choices = _CHOICES.search(description)
        if choices:
            values = json.loads(choices.group(1))
            schema["enum"] = [v.strip() if isinstance(v, str) else v for v in values]
            description = description[: choices.start()].strip()
        properties[parameter.name] = schema | {"description": description}
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    parameters: Schema = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    described_function = {
        "name": name,
        "description": sections[""],
        "parameters": parameters,
    }
    returned = _returned(hints, sections)
    if returned is not None:
        described_function["return"] = returned
    return {"type": "function", "function": described_function}


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    is_receiver = parameters and parameters[0].name in ("self", "cls")
    if is_receiver and parameters[0].annotation is inspect.Parameter.empty:
        return parameters[1:]
    return parameters


def _returned(hints: dict[str, Any], sections: dict[str, str]) -> Schema | None:
    if "return" not in hints:
        return None
    try:
        schema = _of_type(hints["return"], "the result")
    except ValueError:
        # A model never writes the result, so a type that JSON does not know does no harm here.
        return None
    if sections.get("Returns"):
        schema["description"] = sections["Returns"]
    return schema


def _sections(text: str) -> dict[str, str]:
    """Parts of a docstring by heading; the description is under the empty one."""
    parts = _SECTION.split(text.strip())
    found = {"": parts[0].strip()}
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        found[heading] = body.strip("\n").rstrip()
    found["Returns"] = found.get("Returns", "").strip()
    return found


def _arguments(body: str) -> dict[str, str]:
    """Name -> description; lines that are indented deeper go on with the one before."""
    lines = [line for line in body.split("\n") if line.strip()]
    if not lines:
        return {}
    indent = len(lines[0]) - len(lines[0].lstrip())
    entry = re.compile(rf"^[ \t]{{{indent}}}(\w+)(?:[ \t]*\([^()\n]*\))?:\s*(.*)$")
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        begins = entry.match(line)
        if begins:
            name = begins.group(1)
            found[name] = begins.group(2).strip()
        else:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def _of_values(values: list[Any], what: str) -> Schema:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise ValueError(f"{what} may be {values}; JSON knows only str, int, float, bool and None")
    kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _of_type(hint: Any, what: str) -> Schema:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if origin is None and isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _of_values([member.value for member in hint], what)
    if origin is None and hint in _SCALARS | _CONTAINERS:
        return {"type": (_SCALARS | _CONTAINERS)[hint]}
    if origin in (typing.Union, types.UnionType):
        return _of_union(inner, what)
    if origin is typing.Literal:
        return _of_values(list(inner), what)
    if origin is list:
        return {"type": "array", "items": _of_type(inner[0], what)}
    if origin is tuple and len(inner) > 1 and ... not in inner:
        return {"type": "array", "prefixItems": [_of_type(one, what) for one in inner]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of_type(inner[1], what)}
    raise ValueError(
        f"{what} has type {hint}, which is no type of JSON; use str, int, float, bool, list[...], "
        "dict[str, ...], a Literal or an Enum, or give the tool as a JSON schema"
    )


def _of_union(inner: tuple[Any, ...], what: str) -> Schema:
    schemas = [_of_type(one, what) for one in inner if one is not type(None)]
    if len(schemas) == 1:
        schema = schemas[0]
    elif all(set(one) == {"type"} and isinstance(one["type"], str) for one in schemas):
        kinds = sorted({one["type"] for one in schemas})
        schema = {"type": kinds[0] if len(kinds) == 1 else kinds}
    else:
        schema = {"anyOf": schemas}
    return schema | ({"nullable": True} if type(None) in inner else {})
