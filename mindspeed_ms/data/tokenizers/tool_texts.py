# SPDX-License-Identifier: Apache-2.0
"""Tools and calls of tools in records of conversations, and as texts of prompt templates.

A tool is a JSON schema in OpenAI's form, ``{"type": "function", "function": {"name": ...}}``; a
call is ``{"type": "function", "function": {"name": ..., "arguments": ...}}``.

Source: MindSpeed-LLM 2.1 ``tasks/preprocess/formatter.py`` (texts; what a record may hold).
    Deliberate difference: what cannot be read is an error, not an empty text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Tool: TypeAlias = Mapping[str, Any]
Call: TypeAlias = Mapping[str, Any]

_THOUGHT = re.compile(r"<think>.*</think>", re.DOTALL)
_PLAIN = (
    "You have access to the following tools:\n{tools}Use the following format if using a tool:\n"
    "```\nAction: tool name (one of [{names}]).\nAction Input: the input to the tool, in a JSON "
    'format representing the kwargs (e.g. ```{{"input": "hello world", "num_beams": 5}}```).\n'
    "```\n"
)
_QWEN = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>{tools}"
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


def tools_of(given: Any) -> list[Tool]:
    """The tools of a record: a list, or one as JSON text, of schemas with or without their wrap.

    Raises:
        ValueError: it is none.
    """
    found = _json(given, "tools") if isinstance(given, str) and given.strip() else given or []
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise ValueError(f"its tools {given!r:.40} are no list of JSON schemas")
    tools = [one if "function" in one else {"type": "function", "function": one} for one in found]
    for tool in tools:
        _require_name(tool, "tool")
    return tools


def calls_of(given: Any) -> list[Call]:
    """The calls of a message in OpenAI's form.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(given, list) or not given or not all(isinstance(c, Mapping) for c in given):
        raise ValueError(f"its tool_calls {given!r:.40} are no list of calls")
    calls = [one if "function" in one else {"type": "function", "function": one} for one in given]
    for call in calls:
        _require_name(call, "call")
    return calls


def calls_of_text(text: Any) -> tuple[str, list[Call]]:
    """The thought before the calls of a ShareGPT message, and the calls, which are JSON.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(text, str):
        return "", calls_of(text if isinstance(text, list) else [text])
    thought = _THOUGHT.search(text)
    found = _json(_THOUGHT.sub("", text), "call of a function")
    return thought.group() if thought else "", calls_of(
        found if isinstance(found, list) else [found]
    )


def plain_tools(tools: Sequence[Tool]) -> str:
    """Tools as most templates describe them: names, and arguments with their types."""
    told, names = "", []
    for tool in tools:
        function = tool["function"]
        names.append(function["name"])
        schema = function.get("parameters") or {}
        told += f"> Tool Name: {names[-1]}\nTool Description: {function.get('description', '')}\n"
        told += "Tool Args:\n"
        for name, one in (schema.get("properties") or {}).items():
            kind = one.get("type", "") + (
                ", required" if name in schema.get("required", ()) else ""
            )
            line = f"  - {name} ({kind}): {one.get('description', '')}"
            if one.get("enum"):
                line += f", should be one of [{', '.join(map(str, one['enum']))}]"
            if one.get("items"):
                line += f", where each item should be {one['items'].get('type', '')}"
            told += line + "\n"
        told += "\n"
    return _PLAIN.format(tools=told, names=", ".join(names))


def qwen_tools(tools: Sequence[Tool]) -> str:
    """Tools as Qwen's chat templates write them."""
    return _QWEN.format(tools="".join(f"\n{text_of(tool)}" for tool in tools))


def qwen_calls(calls: Sequence[Call]) -> str:
    """Calls as Qwen's chat templates write them."""
    texts = [text_of({"name": name, "arguments": told}) for name, told in map(named, calls)]
    return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)


def named(call: Call) -> tuple[str, Any]:
    """Name and arguments of a call; OpenAI's arguments are JSON text.

    Raises:
        ValueError: the text is no JSON.
    """
    arguments = call["function"].get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments, "arguments of a call")
    return call["function"]["name"], arguments


def text_of(value: Any) -> str:
    """A value as JSON."""
    return json.dumps(value, ensure_ascii=False)


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"its {what} {text!r:.40} is no JSON") from None


def _require_name(one: Mapping[str, Any], what: str) -> None:
    function = one["function"]
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"its {what} {dict(one)!r:.40} has no name")
