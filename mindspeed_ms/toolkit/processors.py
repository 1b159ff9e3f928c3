# SPDX-License-Identifier: Apache-2.0
"""Processors: a text as the one tensor that a model takes, of a fixed length.

Source: MindFormers r1.0 (names, defaults, ``{'text': ids}``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mindspeed_ms.data.tokenizers.byte_level import read_json
from mindspeed_ms.data.tokenizers.tokenizer_folder import WANTED
from mindspeed_ms.files.whole import write_text
from mindspeed_ms.toolkit import hub, messages, registry
from mindspeed_ms.toolkit.given import shown, whole
from mindspeed_ms.toolkit.tokenization import lengths
from mindspeed_ms.toolkit.tokenization.auto import AutoTokenizer
from mindspeed_ms.toolkit.tokenization.base import PreTrainedTokenizerFast
from mindspeed_ms.toolkit.tokenization.batch_encoding import TENSOR_TYPES, as_tensor

CONFIG_FILE = "processor_config.json"
SETTINGS = ("max_length", "padding", "return_tensors")


class TextProcessor:
    """Texts to ids of one length.

    Args:
        tokenizer: makes the ids.
        max_length: tokens of each text; longer ones are cut.
        padding: ``max_length`` fills shorter ones; True or ``longest`` fills up to the longest of
            the texts given together; False leaves them.
        return_tensors: ``ms``, ``np``, or None for lists.

    Raises:
        ValueError: a length below 1, or an unknown word.
        TypeError: no tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast | None = None,
        max_length: int = 128,
        padding: bool | str = "max_length",
        return_tensors: str | None = "ms",
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise TypeError(
                f"tokenizer is {shown(tokenizer)}; give a tokenizer, or use "
                f"{type(self).__name__}.from_pretrained(name_or_folder)"
            )
        max_length = whole("max_length", max_length, 1)
        if return_tensors is not None and return_tensors not in TENSOR_TYPES:
            raise ValueError(
                f"return_tensors is {return_tensors!r}; use 'ms' (MindSpore), 'np' (NumPy) or None"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.padding = padding
        self.return_tensors = return_tensors
        self._lengths = lengths.lengths_of(padding, True, max_length, None, max_length)

    def __call__(self, text_input: str | Sequence[str]) -> dict[str, Any]:
        """Encode a text or several.

        Returns:
            ``{"text": ids}``, ids of shape [texts, tokens], also for a single text.
        """
        texts = [text_input] if isinstance(text_input, str) else list(text_input)
        rows = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        if self._lengths.pads:
            fillers = {"input_ids": self._filler()}
            side = self.tokenizer.padding_side
            rows = lengths.pad_rows({"input_ids": rows}, self._lengths, side, fillers)["input_ids"]
        if self.return_tensors is not None:
            return {"text": as_tensor("text", rows, self.return_tensors)}
        return {"text": rows}

    def _filler(self) -> int:
        """Id that fills: the pad token, else the end token, which models of texts know to skip."""
        for number in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if number is not None:
                return number
        raise ValueError(
            "the tokenizer has neither a pad token nor an end token to fill texts with; set "
            "tokenizer.pad_token, or padding=False"
        )

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], **settings: Any
    ) -> TextProcessor:
        """A processor with the tokenizer of a folder, set as the folder says.

        Args:
            name_or_path: a folder, or a name, looked for as ``toolkit.hub`` says.
            **settings: ``max_length``, ``padding``, ``return_tensors``, ``tokenizer``; they go
                before those of the folder.

        Raises:
            OSError: no such files; says where they were looked for.
            TypeError: an unknown setting.
        """
        for name in settings:
            if name not in (*SETTINGS, "tokenizer"):
                known = (*SETTINGS, "tokenizer")
                raise TypeError(messages.unknown_argument(cls.__name__, name, known))
        stored = _stored(name_or_path)
        if "tokenizer" not in settings:
            settings["tokenizer"] = AutoTokenizer.from_pretrained(name_or_path)
        kept = {name: stored[name] for name in SETTINGS if name in stored}
        return cls(**(kept | settings))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write the tokenizer and ``processor_config.json``.

        Returns:
            The files written.
        """
        files = self.tokenizer.save_pretrained(save_directory)
        config = {name: getattr(self, name) for name in SETTINGS}
        path = Path(save_directory) / CONFIG_FILE
        text = json.dumps({"processor_class": type(self).__name__, **config}, indent=2)
        write_text(path, text + "\n")
        return *files, str(path)


class GPT2Processor(TextProcessor):
    """For GPT-2: ``GPT2Processor.from_pretrained("gpt2")("hello!")``."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt2",)


class LlamaProcessor(TextProcessor):
    """For Llama."""

    model_types: ClassVar[tuple[str, ...]] = ("llama",)


class PanguAlphaProcessor(TextProcessor):
    """For PanguAlpha."""

    model_types: ClassVar[tuple[str, ...]] = ("pangualpha",)


for _class in (GPT2Processor, LlamaProcessor, PanguAlphaProcessor):
    for _model_type in _class.model_types:
        registry.PROCESSORS.add(_model_type, _class)


def _stored(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    folder = hub.find(name_or_path, [CONFIG_FILE])
    return {} if folder is None else read_json(folder / CONFIG_FILE)


class AutoProcessor:
    """Makes the processor of a model; it is not made itself."""

    def __init__(self) -> None:
        raise OSError(
            "AutoProcessor makes processors and is none; call "
            "AutoProcessor.from_pretrained(name_or_folder)"
        )

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], **settings: Any
    ) -> TextProcessor:
        """The processor of a folder or name.

        Its class is the one in ``processor_config.json``; else the one of the model type in
        ``config.json``; else the one of the name's family; else ``TextProcessor``, which serves
        every tokenizer.

        Args:
            name_or_path: a folder, or a name, looked for as ``toolkit.hub`` says.
            **settings: as in ``TextProcessor.from_pretrained``.

        Raises:
            OSError: no such files; says where they were looked for.
        """
        folder = hub.folder_of(name_or_path, [CONFIG_FILE, *WANTED], "give a tokenizer's folder")
        by_name = {
            made.__name__: made for made in map(registry.PROCESSORS.get, registry.PROCESSORS)
        }
        chosen = by_name.get(_stored(folder).get("processor_class", ""))
        if chosen is None:
            config = folder / "config.json"
            model_type = read_json(config).get("model_type") if config.is_file() else None
            family = model_type or hub.family_of(os.fspath(name_or_path))
            known = family in registry.PROCESSORS
            chosen = registry.PROCESSORS.get(family) if known else TextProcessor
        return chosen.from_pretrained(name_or_path, **settings)

    @staticmethod
    def show_support_list() -> list[str]:
        """Families with a processor of their own; ``TextProcessor`` serves the others."""
        return list(registry.PROCESSORS)
