# SPDX-License-Identifier: Apache-2.0
"""Which keyword arguments a tokenizer takes, and which of ``transformers``' have no effect."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mindspeed_ms.data.tokenizers.pipelines import PIPELINES
from mindspeed_ms.data.tokenizers.tokenizer_folder import SPECIAL_NAMES
from mindspeed_ms.toolkit import hub, messages

logger = logging.getLogger(__name__)

_COMMON = {
    "add_bos_token",
    "add_eos_token",
    "added_tokens_decoder",
    "additional_special_tokens",
    "chat_template",
    "clean_up_tokenization_spaces",
    "extra_special_tokens",
    "legacy",
    "max_len",
    "model_input_names",
    "model_max_length",
    "model_specific_special_tokens",
    "name_or_path",
    "padding_side",
    "split_special_tokens",
    "truncation_side",
    *SPECIAL_NAMES,
}
_HUB = hub.REMOTE_WORDS | {"use_fast"}
"""About downloads, code of others, and the choice between two implementations."""


def check(class_name: str, settings: Mapping[str, Any], pipeline_name: str) -> None:
    """Refuse an argument that no tokenizer of the class takes.

    Raises:
        TypeError: names the near one.
    """
    known = _COMMON | PIPELINES[pipeline_name].options.keys()
    for name, value in settings.items():
        # A model may have special tokens of its own, like image_token.
        is_own_token = name.endswith("_token") and not isinstance(value, bool)
        if name not in known and not is_own_token:
            raise TypeError(messages.unknown_argument(class_name, name, known))


def without_hub(class_name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what only a download needs; those that ask for something are named once."""
    for name in sorted(_HUB & settings.keys()):
        # use_fast=True and local_files_only=True are what happens anyway.
        inert = settings[name] in (None, False) or name in ("use_fast", "local_files_only")
        if not inert:
            messages.say_once(
                logger,
                f"{class_name}: {name} has no effect; nothing is downloaded and no code of a "
                "model's folder is run",
            )
    return {name: value for name, value in settings.items() if name not in _HUB}
