# SPDX-License-Identifier: Apache-2.0
"""Templates of MindSpeed-LLM's instruction data: how turns of a conversation are written.

A template is a list of pieces for each role. A piece is a text, in which ``{{content}}`` and
``{{idx}}`` stand for the message and the number of its turn (``{{name}}`` and ``{{arguments}}`` for
those of a call), one token by its name
(``{"token": ...}``), or the token that begins or ends a text (``["bos_token"]``,
``["eos_token"]``). Every piece becomes ids by itself. Files of a user's own
(``--prompt-type-path``) have the same form.

Source: MindSpeed-LLM 2.1 ``tasks/preprocess/templates.py``, ``configs/finetune/templates.json``
    (formats, behaviour).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mindspeed_ms.data.tokenizers import tool_texts
from mindspeed_ms.data.tokenizers.bpe_tokenizers import HuggingFaceTokenizer
from mindspeed_ms.files.regular_file import read_text

Piece: TypeAlias = str | dict[str, str] | list[str]
Pieces: TypeAlias = Sequence[Piece]
Turn: TypeAlias = tuple[list[int], list[int]]
"""Ids of a question and of its answer."""

_BOS: list[Piece] = [["bos_token"]]
_EOS: list[Piece] = [["eos_token"]]
_CONTENT, _NAME, _ARGUMENTS = "{{content}}", "{{name}}", "{{arguments}}"
_FUNCTION = f"Action: {_NAME}\nAction Input: {_ARGUMENTS}"
_MARK = re.compile(r"\{\{(?:content|idx|name|arguments)\}\}")
_NO_MARKS: Mapping[str, str] = {}
_TOOLS: Mapping[str, Callable[[Sequence[tool_texts.Tool]], str]] = {
    "default": tool_texts.plain_tools,
    "qwen": tool_texts.qwen_tools,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTemplate:
    """How the turns of a conversation are written."""

    name: str
    user: Pieces = (_CONTENT,)
    assistant: Pieces = (_CONTENT, *_EOS)
    system: Pieces = (_CONTENT,)
    observation: Pieces = (_CONTENT,)
    function: Pieces = (_FUNCTION, *_EOS)
    """An answer that calls tools."""
    tools: str = "default"
    """How tools are described, behind the system's message."""
    separator: Pieces = ()
    """Between two turns."""
    prefix: Pieces = ()
    """Before everything."""
    default_system: str = ""
    stop_words: Sequence[str] = ()
    thought_words: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    efficient_eos: bool = False
    """The end of a text comes once, and the next question begins with it as what is learned."""
    replace_eos: bool = False
    """The first stop word ends a text, whatever the tokenizer says."""
    system_in_user: bool = False
    """The system's message is the beginning of the first question."""
    reasons: bool = False
    """Answers have a thought, if an empty one."""


def _chatml(**more: Any) -> dict[str, Any]:
    start = "<|im_start|>"
    asked = f"{_CONTENT}<|im_end|>\n{start}assistant\n"
    return {
        "format_user": {"slots": [f"{start}user\n{asked}"]},
        "format_system": {"slots": [f"{start}system\n{_CONTENT}<|im_end|>\n"]},
        "format_observation": {"slots": [f"{start}tool\n{asked}"]},
        "format_separator": {"slots": ["\n"]},
        "stop_words": ["<|im_end|>"],
        "replace_eos": True,
    } | more


def _user(*slots: Piece, **more: Any) -> dict[str, Any]:
    return {"format_user": {"slots": list(slots)}} | more


def _deepseek() -> dict[str, Any]:
    return _user(
        f"User: {_CONTENT}\n\nAssistant:",
        format_system={"slots": [f"{_CONTENT}\n\n"]},
        format_prefix={"slots": _BOS},
    )


def _llama3() -> dict[str, Any]:
    head, end = "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"
    asked = f"{_CONTENT}{end}{head.format('assistant')}"
    return _user(
        head.format("user") + asked,
        format_system={"slots": [head.format("system") + _CONTENT + end]},
        format_observation={"slots": [head.format("tool") + asked]},
        format_prefix={"slots": _BOS},
        stop_words=[end],
        replace_eos=True,
    )


def _gemma() -> dict[str, Any]:
    head, end = "<start_of_turn>{}\n", "<end_of_turn>\n"
    asked = f"{_CONTENT}{end}{head.format('model')}"
    return _user(
        head.format("user") + asked,
        format_observation={"slots": [head.format("tool") + asked]},
        format_separator={"slots": [end]},
        format_prefix={"slots": _BOS},
        efficient_eos=True,
    )


def _glm(*, is_text: bool) -> dict[str, Any]:
    """Version 4 has the marks as texts, version 3 as tokens."""

    def written(mark: str, *, asks: bool) -> dict[str, Any]:
        end: list[Piece] = ([{"token": "<|assistant|>"}] if asks else []) if not is_text else []
        if is_text:
            return {"slots": [f"<|{mark}|>\n{_CONTENT}" + ("<|assistant|>" if asks else "")]}
        return {"slots": [{"token": f"<|{mark}|>"}, "\n", _CONTENT, *end]}

    return {
        "format_user": written("user", asks=True),
        "format_assistant": {"slots": [f"\n{_CONTENT}"] if is_text else ["\n", _CONTENT]},
        "format_system": written("system", asks=False),
        "format_observation": written("observation", asks=True),
        "format_tools": {"tool_format": "glm4"},
        **({"format_function": {"slots": [f"{_NAME}\n{_ARGUMENTS}"]}} if is_text else {}),
        "format_prefix": {
            "slots": ["[gMASK]<sop>"] if is_text else [{"token": "[gMASK]"}, {"token": "sop"}]
        },
        "stop_words": ["<|user|>", "<|observation|>"],
        "efficient_eos": True,
    }


def _instructed() -> dict[str, Any]:
    return _user(f"[INST] {_CONTENT} [/INST]", format_prefix={"slots": _BOS})


def _bare(**more: Any) -> dict[str, Any]:
    return _user(_CONTENT, format_assistant={"slots": [_CONTENT]}, **more)


TEMPLATES: Mapping[str, Mapping[str, Any]] = {
    "alpaca": _user(
        f"### Instruction:\n{_CONTENT}\n\n### Response:\n",
        format_separator={"slots": ["\n\n"]},
        default_system="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n",
    ),
    "baichuan2": _user(f"<reserved_106>{_CONTENT}<reserved_107>", efficient_eos=True),
    "chatglm2": _user(
        f"[Round {{{{idx}}}}]\n\n问：{_CONTENT}\n\n答：",
        format_prefix={"slots": [{"token": "[gMASK]"}, {"token": "sop"}]},
        format_separator={"slots": ["\n\n"]},
        efficient_eos=True,
    ),
    "chatglm3": _glm(is_text=False),
    "chatml": _chatml(stop_words=["<|im_end|>", "<|im_start|>"]),
    "cpm": _user(f"<用户>{_CONTENT}<AI>", format_prefix={"slots": _BOS}),
    "deepseek2": _deepseek(),
    "deepseek2-lite": _deepseek(),
    "deepseek3": _user(f"<｜User｜>{_CONTENT}<｜Assistant｜>", format_prefix={"slots": _BOS}),
    "default": _user(
        f"Human: {_CONTENT}\nAssistant:",
        format_system={"slots": [f"{_CONTENT}\n"]},
        format_separator={"slots": ["\n"]},
    ),
    "empty": _bare(),
    "gemma": _gemma(),
    "glm4": _glm(is_text=True),
    "hunyuan": _bare(default_system="You are a helpful assistant."),
    "intern2": _chatml(
        format_assistant={"slots": [f"{_CONTENT}<|im_end|>\n"]},
        format_observation={},
        format_separator={},
        format_prefix={"slots": _BOS},
        replace_eos=False,
    ),
    "llama2": _user(
        *_BOS,
        f"[INST] {_CONTENT} [/INST]",
        format_system={"slots": [f"<<SYS>>\n{_CONTENT}\n<</SYS>>\n\n"]},
    ),
    "llama3": _llama3(),
    "minicpm3": _deepseek(),
    "mistral": _instructed(),
    "mixtral": _instructed(),
    "qwen": _chatml(default_system="You are a helpful assistant."),
    "qwen3": _chatml(
        format_assistant={"slots": [f"{_CONTENT}<|im_end|>\n"]},
        format_observation={
            "slots": [
                f"<|im_start|>user\n<tool_response>\n{_CONTENT}\n</tool_response><|im_end|>\n"
                "<|im_start|>assistant\n"
            ]
        },
        format_function={"slots": [f"{_CONTENT}<|im_end|>\n"]},
        format_tools={"tool_format": "qwen"},
        format_separator={},
        template_class="ReasoningTemplate",
    ),
    "trl": _bare(format_prefix={"slots": _BOS}),
}
"""Those that need no file, by name, in the form of such files."""


def prompt_template(name: str, path: str | None = None) -> PromptTemplate:
    """The template of a name.

    Args:
        name: ``--prompt-type``.
        path: JSON file that holds a list of templates; None: ``TEMPLATES``.

    Raises:
        ValueError: there is none of that name, or the file is no such list.
    """
    known = TEMPLATES if path is None else _of_file(path)
    if name not in known:
        fix = "give a file that has it with --prompt-type-path" if path is None else "correct it"
        raise ValueError(
            f"prompt type {name!r} is unknown{'' if path is None else f' in {path}'}; use one of "
            f"{', '.join(sorted(known))}, or {fix}"
        )
    return _template(name, known[name])


def _of_file(path: str) -> dict[str, Mapping[str, Any]]:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--prompt-type-path {path} cannot be read ({error})") from None
    are_named = isinstance(content, list) and all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in content
    )
    if not are_named:
        raise ValueError(f"{path} must hold a list of templates, each with a name; correct it")
    return {one["name"]: one for one in content}


def _template(name: str, given: Mapping[str, Any]) -> PromptTemplate:
    """A template of its form in files."""

    def slots(key: str) -> Pieces | None:
        block = given.get(f"format_{key}") or {}
        found = block.get("slots") if isinstance(block, Mapping) else block
        if found is not None and not _are_pieces(found):
            raise ValueError(
                f"template {name} has format_{key} {found!r:.60}; slots are texts, "
                '{"token": name}, ["bos_token"] and ["eos_token"]'
            )
        return found

    def texts(key: str) -> tuple[str, ...]:
        found = given.get(key) or ()
        found = (found,) if isinstance(found, str) else found
        if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
            raise ValueError(f"template {name} has {key} {found!r:.60}; it is a list of texts")
        return tuple(found)

    efficient = bool(given.get("efficient_eos"))
    user = slots("user") or (_CONTENT,)
    kind = given.get("template_class") or ""
    thoughts = texts("thought_words") or ("<think>\n", "\n</think>\n\n")
    if len(thoughts) != 2:
        raise ValueError(f"template {name} has {len(thoughts)} thought_words; give two")
    template = PromptTemplate(
        name=name,
        user=user,
        assistant=slots("assistant") or (_CONTENT, *([] if efficient else _EOS)),
        system=slots("system") or (_CONTENT,),
        observation=slots("observation") or user,
        function=slots("function") or (_FUNCTION, *([] if efficient else _EOS)),
        tools=_tool_format(given),
        separator=slots("separator") or (),
        prefix=slots("prefix") or (),
        default_system="".join(texts("default_system")),
        stop_words=texts("stop_words"),
        thought_words=(thoughts[0], thoughts[1]),
        efficient_eos=efficient,
        replace_eos=bool(given.get("replace_eos")),
        system_in_user=name.startswith("llama2") or kind == "Llama2Template",
        reasons=kind == "ReasoningTemplate",
    )
    if template.replace_eos and not template.stop_words:
        raise ValueError(f"template {name} has replace_eos without stop_words; name the token")
    return template


def _tool_format(given: Mapping[str, Any]) -> str:
    block = given.get("format_tools")
    return str(block.get("tool_format") or "default") if isinstance(block, Mapping) else "default"


def _are_pieces(found: object) -> bool:
    return isinstance(found, list | tuple) and all(
        isinstance(one, str)
        or (isinstance(one, dict) and isinstance(one.get("token"), str))
        or (isinstance(one, list) and all(part in ("bos_token", "eos_token") for part in one))
        for one in found
    )


def end_of_turns(template: PromptTemplate | None, tokenizer: Any) -> int | None:
    """Id that ends a text: the template's, or else the tokenizer's; None when there is none.

    Raises:
        ValueError: the tokenizer lacks the template's.
    """
    if template is None or not template.replace_eos:
        end: int | None = tokenizer.eos
        return end
    return _token(template.stop_words[0], template, tokenizer)


def _token(name: str, template: PromptTemplate, tokenizer: Any) -> int:
    find = getattr(tokenizer, "token_to_id", None)
    number: int | None = None if find is None else find(name)
    if number is None:
        raise ValueError(
            f"template {template.name} needs the token {name}, which the tokenizer lacks; use the "
            "template of its model, or add the token to its files"
        )
    return number


@dataclass(frozen=True, slots=True)
class PromptWriter:
    """Conversations as ids.

    Args:
        template: how they are written.
        tokenizer: with ``eos`` and, where the template asks for them, ``bos`` and
            ``token_to_id``.
        thinks: of templates that reason: True: an answer without a thought gets an empty one,
            which is learned. False: thoughts are left out, and an empty one belongs to the
            question. None: thoughts stay, an empty one belongs to the question.
    """

    template: PromptTemplate
    tokenizer: Any
    thinks: bool | None = None
    end: int | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", end_of_turns(self.template, self.tokenizer))

    def turns(
        self,
        messages: Sequence[Mapping[str, Any]],
        system: str = "",
        tools: Sequence[tool_texts.Tool] = (),
    ) -> list[Turn]:
        """Questions and answers in turn.

        Args:
            messages: ``role`` (user or tool, then assistant, and so on), ``content``, and
                ``tool_calls`` of answers that call tools.
            system: the system's message; empty: the template's.
            tools: what may be called.

        Raises:
            ValueError: the tokenizer lacks a token of the template, or the template does not write
                such tools or calls.
        """
        template, system = self.template, system or self.template.default_system
        system += self._of_tools(tools) if tools else ""
        texts = [message["content"] for message in messages]
        if template.reasons and self.thinks is False:
            texts = [self._unthought(one) if place % 2 else one for place, one in enumerate(texts)]
        written: list[list[int]] = []
        for place, (message, content) in enumerate(zip(messages, texts, strict=True)):
            ids: list[int] = []
            if not place:
                ids += self._ids(template.prefix)
                if system and template.system_in_user:
                    content = _filled(template.system[0], {_CONTENT: system}) + content
                elif system:
                    ids += self._ids(template.system, {_CONTENT: system})
            elif not place % 2:
                ids += self._ids(template.separator)
            if message.get("tool_calls"):
                ids += self._ids(template.function, self._call_marks(message, content))
            else:
                pieces = {"user": template.user, "tool": template.observation}
                marks = {_CONTENT: content, "{{idx}}": str(place // 2)}
                ids += self._ids(pieces.get(message["role"], template.assistant), marks)
            written.append(ids)
        if template.reasons:
            self._add_thoughts(written, texts)
        return list(zip(written[::2], written[1::2], strict=True))

    def _of_tools(self, tools: Sequence[tool_texts.Tool]) -> str:
        template = self.template
        if template.tools not in _TOOLS:
            raise ValueError(
                f"template {template.name} describes tools in the form {template.tools}, which is "
                "not written here; leave --prompt-type out, for the tokenizer's own chat template"
            )
        return _TOOLS[template.tools](tools)

    def _call_marks(self, message: Mapping[str, Any], thought: str) -> dict[str, str]:
        """What stands for the marks in the pieces of an answer that calls tools."""
        calls = message["tool_calls"]
        if any(isinstance(one, str) and _CONTENT in one for one in self.template.function):
            return {_CONTENT: thought + tool_texts.qwen_calls(calls)}
        if len(calls) > 1 or thought:
            raise ValueError(
                f"template {self.template.name} writes one call without a text, not {len(calls)} "
                f"behind {thought!r:.20}; leave --prompt-type out, for the tokenizer's own chat "
                "template"
            )
        name, arguments = tool_texts.named(calls[0])
        return {_NAME: name, _ARGUMENTS: tool_texts.text_of(arguments)}

    def _add_thoughts(self, written: list[list[int]], texts: Sequence[str]) -> None:
        words = self.template.thought_words
        for place in range(1, len(texts), 2):
            if any(word in texts[place] for word in words):
                continue
            empty = self._ids(["".join(words)])
            if self.thinks:
                written[place] = empty + written[place]
            else:
                written[place - 1] += empty

    def _unthought(self, text: str) -> str:
        start, end = map(re.escape, self.template.thought_words)
        return re.sub(f"{start}.*?{end}", "", text, flags=re.DOTALL).lstrip("\n")

    def _ids(self, pieces: Pieces, marks: Mapping[str, str] = _NO_MARKS) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, str):
                text = _filled(piece, marks)
                ids += self._of_text(text) if text else []
            elif isinstance(piece, dict):
                ids.append(_token(piece["token"], self.template, self.tokenizer))
            else:
                bos = getattr(self.tokenizer, "bos", None)
                number = bos if "bos_token" in piece else self.end
                ids += [] if number is None else [number]
        return ids

    def _of_text(self, text: str) -> list[int]:
        if isinstance(self.tokenizer, HuggingFaceTokenizer):
            return self.tokenizer.tokenize(text, add_special_tokens=False)
        ids: list[int] = self.tokenizer.tokenize(text)
        return ids


def _filled(piece: Piece, marks: Mapping[str, str]) -> str:
    assert isinstance(piece, str), "a system's message within a question is a text"
    return _MARK.sub(lambda found: marks.get(found.group(), ""), piece)
