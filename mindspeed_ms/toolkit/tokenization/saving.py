# SPDX-License-Identifier: Apache-2.0
"""Writes a tokenizer as files that ``transformers`` and this project open."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mindspeed_ms.data.tokenizers.pipelines import GENERIC, PIPELINES
from mindspeed_ms.files.whole import write_text
from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.given import shown
from mindspeed_ms.toolkit.tokenization.special_tokens import SpecialTokens

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"


class Saving(SpecialTokens):
    """``save_pretrained`` of a tokenizer."""

    pipeline_name: ClassVar[str]
    declared_class: str | None
    chat_template: str | dict[str, str] | None

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and the chat templates.

        Args:
            save_directory: folder, made when it is not there.
            filename_prefix: put before the names of the files, with a hyphen.

        Returns:
            The files written.

        Raises:
            ValueError: the path is a file.
        """
        folder = Path(hub.checked_name(save_directory))
        if folder.is_file():
            raise ValueError(f"{folder} is a file; give a folder to save the tokenizer in")
        folder.mkdir(parents=True, exist_ok=True)
        prefix = _prefix(filename_prefix)
        config = folder / f"{prefix}{CONFIG_FILE}"
        text = json.dumps(self._config(), indent=2, sort_keys=True, ensure_ascii=False)
        files = {config: text + "\n", folder / f"{prefix}{TOKENIZER_FILE}": self._tokenizer_json()}
        files |= self._template_files(folder, prefix)
        for path, content in files.items():
            write_text(path, content)
        return tuple(map(str, files))

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the model's vocabulary in its own form (``vocab.json`` and ``merges.txt``, ...)."""
        folder = Path(hub.checked_name(save_directory))
        _prefix(filename_prefix)
        folder.mkdir(parents=True, exist_ok=True)
        return tuple(self._assembly.backend.model.save(str(folder), filename_prefix))

    def _tokenizer_json(self) -> str:
        """The backend as it was read: truncation and padding of the last call stay out."""
        backend = self._assembly.backend
        truncation, padding = self._own_lengths
        backend.no_truncation()
        backend.no_padding()
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
        return backend.to_str(pretty=True)

    def _config(self) -> dict[str, Any]:
        assembly = self._assembly
        config = {name: _as_json(value) for name, value in assembly.settings.items()}
        config |= {
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "tokenizer_class": self._class_to_name(),
        }
        if self.split_special_tokens:
            config["split_special_tokens"] = True
        if self._given_input_names:
            config["model_input_names"] = self.model_input_names
        config |= self.special_tokens_map
        if assembly.extra:
            config["extra_special_tokens"] = self.extra_special_tokens
        return config

    def _class_to_name(self) -> str:
        """The class that opens the files again.

        A class that is not known here keeps its name. One that is known but was not what opened
        the folder would put other steps around the vocabulary.
        """
        declared = self.declared_class or GENERIC
        is_other = declared.removesuffix("Fast") in PIPELINES
        return declared if self.pipeline_name == GENERIC and not is_other else self.pipeline_name

    def _template_files(self, folder: Path, prefix: str) -> dict[Path, str]:
        templates = self.chat_template
        if templates is None:
            return {}
        if isinstance(templates, str):
            return {folder / f"{prefix}{TEMPLATE_FILE}": templates}
        files = {}
        for name, template in templates.items():
            if Path(name).name != name:
                raise ValueError(f"chat template {name!r} cannot be the name of a file; rename it")
            others = folder / f"{prefix}{TEMPLATE_FOLDER}"
            is_main = name == "default"
            files[folder / f"{prefix}{TEMPLATE_FILE}" if is_main else others / f"{name}.jinja"] = (
                template
            )
        return files


def _as_json(value: Any) -> Any:
    """A setting as JSON: tokens as objects that name their type."""
    if isinstance(value, Mapping):
        return {str(name): _as_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if type(value).__name__ == "AddedToken":
        return value.__getstate__() | {"__type": "AddedToken"}
    return value


def _prefix(given: str | None) -> str:
    """What stands before the names of files.

    Raises:
        TypeError: it is no text.
        ValueError: it is more than part of a name.
    """
    if given is None or given == "":
        return ""
    if not isinstance(given, str):
        raise TypeError(f"filename_prefix is {shown(given)}, but must be a text")
    if os.sep in hub.checked_name(given):
        raise ValueError(f"filename_prefix {given!r} is a path; give part of a file's name")
    return f"{given}-"
