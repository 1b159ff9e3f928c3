# SPDX-License-Identifier: Apache-2.0
"""A sandbox for chat templates that ends: steps, sizes of texts and of numbers are limited.

Templates come with models, so anybody may have written them. Jinja's own sandbox keeps them away
from Python; it lets them loop for days and fill the memory.
"""

from __future__ import annotations

import contextvars
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mindspeed_ms.data.tokenizers import optional_libraries

MAX_STEPS = 1_000_000
"""Turns of loops and calls of macros while a conversation is written."""
MAX_LENGTH = 1 << 26
"""Characters of a text, items of a list, size of a number that sets the length of one."""
_MAX_BITS = 1 << 16
_STEP, _JOIN = "_one_step", "_joined"
_WIDE = re.compile(r"%[^a-zA-Z%]*(\*|\d{7})|:[^}]*\d{7}")
"""Widths in formats of ``%`` and of ``str.format``."""

_STEPS: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("steps", default=None)


@contextmanager
def counted() -> Iterator[None]:
    """In the block a template is rendered, and its steps are counted from 0."""
    token = _STEPS.set([0])
    try:
        yield
    finally:
        _STEPS.reset(token)


@functools.cache
def sandbox_class() -> type:
    """The environment's class."""
    sandbox = optional_libraries.load("jinja2.sandbox", "a chat template")
    nodes = optional_libraries.load("jinja2.nodes", "a chat template")
    visitor = optional_libraries.load("jinja2.visitor", "a chat template")

    transformer: Any = visitor.NodeTransformer
    environment: Any = sandbox.ImmutableSandboxedEnvironment

    class Counted(transformer):
        def visit_For(self, node: Any) -> Any:  # noqa: N802  (named by the library)
            self.generic_visit(node)
            step = nodes.ExprStmt(nodes.Call(nodes.Name(_STEP, "load"), [], [], None, None))
            node.body.insert(0, step.set_lineno(node.lineno))
            return node

        visit_Macro = visit_CallBlock = visit_For  # noqa: N815

        def visit_Concat(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            call = nodes.Call(nodes.Name(_JOIN, "load"), node.nodes, [], None, None)
            return call.set_lineno(node.lineno)

    class Limited(environment):
        filters: dict[str, Any]
        intercepted_binops = frozenset(("*", "**", "%", "+"))

        def __init__(self, **options: Any) -> None:
            super().__init__(finalize=_checked_text, **options)
            self.filters = {name: limited(one) for name, one in self.filters.items()}
            del self.globals["lipsum"]  # writes any number of words
            self.globals.update({_STEP: _step, _JOIN: _join})

        def _parse(self, *source: Any) -> Any:
            return Counted().visit(super()._parse(*source))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *args: Any, **words: Any) -> Any:
            _check_arguments((getattr(function, "__self__", None), *args, *words.values()))
            return super().call(context, function, *args, **words)

    return Limited


def _refuse(what: str) -> None:
    errors = optional_libraries.load("jinja2", "a chat template")
    raise errors.TemplateRuntimeError(f"{what}; correct the template")


def _step() -> str:
    steps = _STEPS.get()
    if steps is not None:
        steps[0] += 1
        if steps[0] > MAX_STEPS:
            _refuse(f"it takes more than {MAX_STEPS} steps")
    return ""


def _join(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) > MAX_LENGTH:
        _refuse(f"it makes a text of more than {MAX_LENGTH} characters")
    return "".join(texts)


def _checked_text(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_LENGTH:
        _refuse(f"it makes a text of more than {MAX_LENGTH} characters")
    return value


def limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that looks at its arguments first."""

    @functools.wraps(function)
    def checked(*args: Any, **words: Any) -> Any:
        _check_arguments((*args, *words.values()))
        return function(*args, **words)

    return checked


def _check_arguments(given: tuple[Any, ...]) -> None:
    for value in given:
        if isinstance(value, int) and abs(value) > MAX_LENGTH:
            _refuse(f"a number in a call is above {MAX_LENGTH}")
        if isinstance(value, str) and "{" in value and _WIDE.search(value) and len(given) > 1:
            _refuse("a format is wider than 999999")
    if len(given) >= 3 and all(isinstance(value, str) for value in given[:3]):
        text, old, new = given[:3]  # replace
        if (text.count(old) + 1) * len(new) > MAX_LENGTH:
            _refuse(f"it makes a text of more than {MAX_LENGTH} characters")


def _check_operation(operator: str, left: Any, right: Any) -> None:
    if operator == "%" and isinstance(left, str) and _WIDE.search(left):
        _refuse("a format is wider than 999999, or has a width of *")
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * max(right, 1) > _MAX_BITS:
            _refuse(f"a power has more than {_MAX_BITS} bits")
    if operator in ("*", "+") and _size(operator, left, right) > MAX_LENGTH:
        _refuse(f"it makes something longer than {MAX_LENGTH}")


def _size(operator: str, left: Any, right: Any) -> int:
    """Length of a result; 0 where it is a number."""
    is_long = [isinstance(value, str | list | tuple) for value in (left, right)]
    if operator == "+" and all(is_long):
        return len(left) + len(right)
    if operator == "*" and is_long[0] and isinstance(right, int):
        return len(left) * right
    if operator == "*" and is_long[1] and isinstance(left, int):
        return len(right) * left
    return 0
