# SPDX-License-Identifier: Apache-2.0
"""The part of a tokenizer that writes conversations by a chat template."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mindspeed_ms.data.tokenizers import chat_templates
from mindspeed_ms.toolkit import messages
from mindspeed_ms.toolkit.tokenization import control_tokens, lengths
from mindspeed_ms.toolkit.tokenization.batch_encoding import BatchEncoding, as_tensor
from mindspeed_ms.toolkit.tokenization.special_tokens import SpecialTokens

logger = logging.getLogger(__name__)

_NO_BLOCK = "the chat template has no {% generation %} block, so no token counts as the assistant's"


class ChatTemplates(SpecialTokens):
    """Conversations to text or ids.

    ``chat_template`` is a Jinja text, or name -> text where a model has several.
    """

    chat_template: str | dict[str, str] | None

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Any] | None = None
    ) -> str:
        """The template that a conversation is written by.

        Args:
            chat_template: Jinja text, or the name of one of the tokenizer's templates.
            tools: with tools, a template named ``tool_use`` goes before the ``default`` one.

        Raises:
            ValueError: there is none.
        """
        own = self.chat_template
        if isinstance(own, dict):
            if chat_template is not None:
                return own.get(chat_template, chat_template)
            if tools is not None and "tool_use" in own:
                return own["tool_use"]
            if "default" in own:
                return own["default"]
            raise ValueError(
                "the tokenizer has several chat templates and none is the default; name one as "
                f"chat_template: {', '.join(sorted(own))}"
            )
        found = chat_template if chat_template is not None else own
        if found is None:
            raise ValueError(
                "the tokenizer has no chat template; set tokenizer.chat_template, or give "
                "chat_template"
            )
        return found

    def apply_chat_template(  # noqa: PLR0913  (the arguments of transformers)
        self,
        conversation: Sequence[Any],
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = False,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """Write a conversation, or a batch of them, as text or ids.

        Args:
            conversation: messages with ``role`` and ``content``, or a list of conversations.
            tools: JSON schemas or functions that the model may call.
            documents: what the model may cite.
            chat_template: Jinja text or a template's name. None: the tokenizer's.
            add_generation_prompt: end with the start of an assistant's message.
            continue_final_message: leave the last message open; a string names its field.
            tokenize: ids; else the text.
            sanitize_control_tokens: control tokens in messages, tools, documents and variables are
                encoded as text; only those that the template writes are control tokens.
            padding: as in a call.
            truncation: as in a call.
            max_length: as in a call.
            return_tensors: as in a call.
            return_dict: all that a call returns; else the ids alone.
            return_assistant_tokens_mask: add ``assistant_masks``, 1 in ``{% generation %}`` blocks.
            tokenizer_kwargs: further arguments of the call.
            **variables: further names the template may use.

        Raises:
            ValueError: no template, a conversation it refuses, or arguments that do not fit.
        """
        with_mask = return_assistant_tokens_mask
        _check(tokenize, return_dict, with_mask, continue_final_message, sanitize_control_tokens)
        template = self.get_chat_template(chat_template, tools)
        if with_mask and not chat_templates.has_generation(template):
            messages.say_once(logger, _NO_BLOCK)
        first = next(iter(getattr(conversation, "messages", conversation)), None)
        is_batch = isinstance(first, list | tuple) or hasattr(first, "messages")
        inputs: dict[str, Any] = {"tools": tools, "documents": documents, "variables": variables}
        inputs["chats"] = [
            chat_templates.plain_messages(one)
            for one in (conversation if is_batch else [conversation])
        ]
        if sanitize_control_tokens:
            added = self.added_tokens_decoder.values()
            inputs = control_tokens.marked(inputs, control_tokens.of_template(added, template))
        rendered = self._rendered(
            template,
            **inputs,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            with_spans=with_mask,
        )
        texts = [one.text for one in rendered]
        given = texts if is_batch else texts[0]
        if not tokenize:
            return given
        wanted: dict[str, Any] = {"padding": padding, "truncation": truncation}
        wanted |= {"max_length": max_length, "return_tensors": return_tensors}
        encode = self._encode_marked if sanitize_control_tokens else self._encode_chat
        result = encode(given, **wanted, **(tokenizer_kwargs or {}))
        if with_mask:
            masks = _masks(result, [one.spans for one in rendered], return_tensors)
            has_rows = is_batch or return_tensors is not None
            result["assistant_masks"] = masks if has_rows else masks[0]
        return result if return_dict else result["input_ids"]

    def _rendered(
        self,
        template: str,
        *,
        chats: Sequence[chat_templates.Conversation],
        variables: Mapping[str, Any],
        **options: Any,
    ) -> list[chat_templates.Rendered]:
        options |= {**self.special_tokens_map, **variables}
        return [chat_templates.render(chat, template, **options) for chat in chats]

    def _encode_chat(self, texts: str | list[str], **options: Any) -> BatchEncoding:
        call: Callable[..., BatchEncoding] = self.__call__
        return call(texts, add_special_tokens=False, **options)

    def _encode_marked(
        self,
        texts: str | list[str],
        *,
        padding: bool | str,
        truncation: bool,
        max_length: int | None,
        return_tensors: str | None,
        **options: Any,
    ) -> BatchEncoding:
        """Encode texts in which the user's control tokens are marked."""
        is_batch = not isinstance(texts, str)
        every = [texts] if isinstance(texts, str) else texts
        rows = [control_tokens.encode(self, text) for text in every]
        found = lengths.lengths_of(padding, truncation, max_length, None, self.model_max_length)
        if found.truncates:
            length = found.max_length
            assert length is not None, "what cuts has a length to cut to"
            cuts_left = self.truncation_side == "left"
            rows = [row[-length:] if cuts_left else row[:length] for row in rows]
        return self.pad(
            {"input_ids": rows if is_batch or return_tensors is not None else rows[0]},
            padding=found.padding,
            max_length=found.max_length,
            return_tensors=return_tensors,
            **options,
        )


def _check(
    tokenize: bool,
    return_dict: bool,
    with_mask: bool,
    continued: bool | str,
    sanitize: bool,
) -> None:
    """Refuse arguments of ``apply_chat_template`` that do not go together."""
    if with_mask and (continued or not (tokenize and return_dict)):
        raise ValueError(
            "return_assistant_tokens_mask needs tokenize=True, return_dict=True and no "
            "continue_final_message"
        )
    if sanitize and (with_mask or not tokenize):
        raise ValueError(
            "sanitize_control_tokens needs tokenize=True and no return_assistant_tokens_mask"
        )


def _masks(
    result: BatchEncoding, spans: Sequence[Sequence[tuple[int, int]]], tensor_type: str | None
) -> Any:
    """1 for each token that shares a character with a span; one row a text."""
    assert result.encodings is not None, "a text was encoded"
    masks = [
        [int(any(start < to and end > of for of, to in own)) for start, end in encoding.offsets]
        for encoding, own in zip(result.encodings, spans, strict=True)
    ]
    return masks if tensor_type is None else as_tensor("assistant_masks", masks, tensor_type)
