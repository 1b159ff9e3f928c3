# SPDX-License-Identifier: Apache-2.0
"""Conversations written as the text a chat model was trained on, by its Jinja template.

A template comes with a model's files, so it is a stranger's program: it runs in a sandbox and
sees plain data only.

Source: ``transformers`` 5.24 (what a template may use; results are compared with it).
"""

from __future__ import annotations

import contextvars
import dataclasses
import datetime
import functools
import inspect
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mindspeed_ms.data.tokenizers import optional_libraries, template_limits
from mindspeed_ms.data.tokenizers.tool_schemas import schema_of

Message = Mapping[str, Any]
Conversation = Sequence[Message]

_OF_TEMPLATES = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError),
    ValueError,
)
"""What the expressions of a template may raise."""

_SAFE_JINJA = (3, 1, 6)
"""Older versions let a template out of its sandbox."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that a message's reasoning goes by; templates read the first, gpt-oss's the second."""

_CUT_HERE = "CONTINUE_FINAL_MESSAGE_TAG "
"""Put behind the message to go on with; what follows it in the text is cut off. Its space tells
whether the template strips messages."""


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    spans: list[tuple[int, int]]
    """Characters inside ``{% generation %}``; none where they were not asked for."""


class _Marks(NamedTuple):
    """Strings around generated text while a template renders; no message can contain them."""

    start: str
    end: str


_MARKS: contextvars.ContextVar[_Marks | None] = contextvars.ContextVar("marks", default=None)


def render(
    conversation: Conversation,
    template: str,
    *,
    tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    with_spans: bool = False,
    **variables: Any,
) -> Rendered:
    """Write a conversation.

    Args:
        conversation: messages, each with ``role`` and ``content``.
        template: Jinja text.
        tools: JSON schemas, or functions with types and a Google docstring.
        documents: what the model may cite.
        add_generation_prompt: end with the start of an assistant's message.
        continue_final_message: end with the last message, open; a string names its field.
        with_spans: tell which characters lie inside ``{% generation %}``.
        **variables: other names the template may use, special tokens among them.

    Raises:
        ValueError: an empty conversation, a template that does not compile or that refuses it.
        RuntimeError: ``jinja2`` is missing or too old.
    """
    if not conversation:
        raise ValueError("the conversation is empty; give at least one message")
    messages = [_with_reasoning(message) for message in plain_messages(conversation)]
    final = ""
    if continue_final_message:
        if add_generation_prompt:
            raise ValueError(
                "continue_final_message goes on with the last message and add_generation_prompt "
                "begins a new one; set one of them"
            )
        field = continue_final_message if isinstance(continue_final_message, str) else "content"
        final = _mark_final(messages[-1], field, template)
    compiled = _compiled(template)
    marks = _Marks(f"\x02{uuid.uuid4().hex}\x02", f"\x03{uuid.uuid4().hex}\x03")
    token = _MARKS.set(marks if with_spans else None)
    errors = optional_libraries.load("jinja2", "a chat template").TemplateError
    try:
        with template_limits.counted():
            text = compiled.render(
                messages=messages,
                tools=None if tools is None else [_plain(_schema(tool)) for tool in tools],
                documents=None if documents is None else [_document(one) for one in documents],
                add_generation_prompt=add_generation_prompt,
                **{name: _plain(value) for name, value in variables.items()},
            )
    except (errors, *_OF_TEMPLATES) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise ValueError(f"the chat template does not take this conversation: {reason}") from error
    finally:
        _MARKS.reset(token)
    if continue_final_message:
        text = _cut_final(text, final)
    return _without_marks(text, marks) if with_spans else Rendered(text, [])


def has_generation(template: str) -> bool:
    """Whether a template tells which text is the assistant's."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def literal_text(template: str) -> str:
    """What a template itself writes: its text and its strings, apart from each other."""
    nodes = optional_libraries.load("jinja2.nodes", "a chat template")
    tree = _compiled(template).environment.parse(template)
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    texts |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(texts))


def _without_marks(text: str, marks: _Marks) -> Rendered:
    spans: list[tuple[int, int]] = []
    pieces, length, start = [], 0, 0
    for piece in re.split(f"({marks.start}|{marks.end})", text):
        if piece == marks.start:
            start = length
        elif piece == marks.end:
            spans.append((start, length))
        else:
            pieces.append(piece)
            length += len(piece)
    return Rendered("".join(pieces), spans)


# ---- the environment of a template ----


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    jinja2 = optional_libraries.load("jinja2", "a chat template")
    numbers = tuple(int(part) for part in re.findall(r"\d+", jinja2.__version__)[:3])
    if numbers < _SAFE_JINJA:
        raise RuntimeError(
            f"chat templates need jinja2 3.1.6 or newer, {jinja2.__version__} is installed; run: "
            "pip install -U jinja2"
        )
    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"the chat template has an error in line {error.lineno}: {error.message}"
        ) from error
    except (RecursionError, MemoryError):
        raise ValueError("the chat template is nested too deeply; correct it") from None


@functools.cache
def _environment() -> Any:
    """Jinja as chat templates expect it."""
    extensions = optional_libraries.load("jinja2.ext", "a chat template")
    environment = template_limits.sandbox_class()(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_generation_extension(), extensions.loopcontrols],
    )
    environment.filters["tojson"] = template_limits.limited(_tojson)
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda text: datetime.datetime.now().strftime(text),
        dict=_Dict(),
        namespace=_namespace_class(),
    )
    return environment


@functools.cache
def _generation_extension() -> type:
    """The block ``{% generation %}``: puts marks around its text when they are asked for."""
    jinja2 = optional_libraries.load("jinja2", "a chat template")
    nodes = optional_libraries.load("jinja2.nodes", "a chat template")
    extensions = optional_libraries.load("jinja2.ext", "a chat template")

    def parse(self: Any, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def mark(self: Any, context: Any, caller: Callable[[], str]) -> str:
        marks = _MARKS.get()
        return caller() if marks is None else f"{marks.start}{caller()}{marks.end}"

    body = {"tags": {"generation"}, "parse": parse, "_mark": mark}
    return type("Generation", (extensions.Extension,), body)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes characters of HTML as escapes.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise optional_libraries.load("jinja2", "a chat template").TemplateError(message)


class _Dict:
    """``dict`` for templates, which gives no way to the class itself."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As ``dict.fromkeys``."""
        return dict.fromkeys(*args)


@functools.cache
def _namespace_class() -> type:
    """Jinja's namespace, without names that begin with an underscore."""
    jinja2 = optional_libraries.load("jinja2", "a chat template")
    base = optional_libraries.load("jinja2.utils", "a chat template").Namespace

    def check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.sandbox.SecurityError(f"a namespace of a template cannot hold {name!r}")

    def __init__(*args: Any, **values: Any) -> None:  # noqa: N807  (may hold a name "self")
        held = dict(*args[1:], **values)
        for name in held:
            check(name)
        base.__init__(args[0], held)

    def __setitem__(self: Any, name: str, value: Any) -> None:  # noqa: N807
        check(name)
        base.__setitem__(self, name, value)

    return type("Namespace", (base,), {"__init__": __init__, "__setitem__": __setitem__})


# ---- what a template sees ----


def plain_messages(conversation: Any) -> list[dict[str, Any]]:
    """Messages as dictionaries of plain data, without entries that are None.

    Raises:
        ValueError: a message that is neither a mapping nor an object with fields.
    """
    messages = [_plain(message) for message in getattr(conversation, "messages", conversation)]
    for message in messages:
        if not isinstance(message, dict):
            raise ValueError(
                f"a message is {message!r:.60}; give dictionaries with 'role' and 'content'"
            )
    # APIs write content=None or tool_calls=None; templates would print "None".
    return [{name: value for name, value in one.items() if value is not None} for one in messages]


def _plain(value: Any) -> Any:
    """Data of JSON's types; anything else becomes a word for its type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for base in (str, int, float):
        # Enums, numbers of numpy and the like: their own methods stay outside.
        if isinstance(value, base):
            return base.__str__(value) if base is str else base(value)
    if isinstance(value, Mapping):
        return {_plain(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(inner) for inner in value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {one.name: _plain(getattr(value, one.name)) for one in fields}
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning} | message | {"reasoning_content": reasoning}


def _schema(tool: Mapping[str, Any] | Callable[..., Any]) -> Mapping[str, Any]:
    if isinstance(tool, Mapping):
        return tool
    if inspect.isfunction(tool) or inspect.ismethod(tool):
        return schema_of(tool)
    raise ValueError(f"a tool is {tool!r:.60}; give a JSON schema or a function")


def _document(document: Mapping[str, Any]) -> Any:
    if not isinstance(document, Mapping):
        raise ValueError(
            f"a document is {document!r:.60}; give dictionaries with 'title' and 'text'"
        )
    return _plain(document)


# ---- going on with the last message ----


def _mark_final(message: dict[str, Any], field: str, template: str) -> str:
    """Mark the end of the message to go on with; returns its text."""
    content = message.get(field)
    if content is None:
        raise ValueError(f"the last message has no {field!r} to go on with")
    fields = [field]
    if field in _REASONING:
        # Reasoning stands under several names; the template reads one of them.
        fields = [name for name in _REASONING if message.get(name) == content]
    if not any(name in template for name in fields):
        raise ValueError(f"the chat template does not write {field!r}, so nothing can go on there")
    if isinstance(content, str):
        for name in fields:
            message[name] = content + _CUT_HERE
        return content
    for block in reversed(content):
        if "text" in block:
            text = block["text"]
            block["text"] = text + _CUT_HERE
            return text
    raise ValueError(f"the last message has no text in {field!r} to go on with")


def _cut_final(text: str, final: str) -> str:
    tag = _CUT_HERE.strip()
    if final.strip() not in text or tag not in text:
        raise ValueError(
            "the chat template leaves out part of the last message, so it cannot be gone on with"
        )
    at = text.rindex(tag)
    # A template that strips messages took the tag's space, and the message's own, with it.
    is_whole = text[at : at + len(_CUT_HERE)] == _CUT_HERE
    return text[:at] if is_whole else text[:at].rstrip()
