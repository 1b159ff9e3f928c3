# SPDX-License-Identifier: Apache-2.0
"""``AutoTokenizer``: the class that a folder's files are for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mindspeed_ms.data.tokenizers.pipelines import PIPELINES
from mindspeed_ms.data.tokenizers.tokenizer_folder import WANTED, class_of_folder
from mindspeed_ms.toolkit import hub, registry
from mindspeed_ms.toolkit.tokenization import classes, pangualpha  # noqa: F401  (they register)
from mindspeed_ms.toolkit.tokenization.base import PreTrainedTokenizerFast


class AutoTokenizer:
    """Opens any tokenizer; it is not made itself."""

    def __init__(self) -> None:
        raise OSError(
            "AutoTokenizer makes tokenizers and is none; call "
            "AutoTokenizer.from_pretrained(name_or_folder)"
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: Any = None,
        tokenizer_type: str | None = None,
        **settings: Any,
    ) -> PreTrainedTokenizerFast:
        """Read a tokenizer from local files, as the class they are for.

        Args:
            pretrained_model_name_or_path: a folder; a name, looked for as ``toolkit.hub`` says; or
                a single file.
            config: the model's configuration; its ``model_type`` goes before the folder's.
            tokenizer_type: model type or class to open it with, whatever the folder says.
            **settings: go before those of the folder.

        Raises:
            OSError: no such files; says where they were looked for.
            ValueError: unusable files or settings.
        """
        path = Path(hub.checked_name(pretrained_model_name_or_path))
        if not path.is_file():
            subfolder = settings.get("subfolder", "") or ""
            path = hub.folder_of(path / subfolder, WANTED, "give the folder of a tokenizer")
        model_type = getattr(config, "model_type", None)
        name, declared = class_of_folder(path, model_type, tokenizer_type)
        # A class that the user registered opens the folders that name it.
        if declared is not None and declared in registry.TOKENIZERS and declared not in PIPELINES:
            name = declared
        return registry.TOKENIZERS.get(name).from_pretrained(
            pretrained_model_name_or_path, **settings
        )

    @staticmethod
    def register(name: str, tokenizer_class: type[PreTrainedTokenizerFast]) -> None:
        """Open folders whose ``tokenizer_class`` is ``name`` with a class of the user's own.

        Raises:
            ValueError: the name is taken.
        """
        registry.TOKENIZERS.add(name, tokenizer_class)

    @staticmethod
    def show_support_list() -> list[str]:
        """Names of the classes; others are opened by what their ``tokenizer.json`` says."""
        return list(registry.TOKENIZERS)
