# SPDX-License-Identifier: Apache-2.0
"""The tokenizer class: texts to ids and back, in any kind of vocabulary.

Source: ``transformers`` 5.24 (names, arguments, results; compared with it text by text).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.data.tokenizers.assembly import Assembly, assemble
from mindspeed_ms.data.tokenizers.pipelines import GENERIC, PIPELINES
from mindspeed_ms.data.tokenizers.tokenizer_folder import WANTED, Source, open_folder, read_from
from mindspeed_ms.toolkit import given, hub
from mindspeed_ms.toolkit.tokenization import arguments, lengths
from mindspeed_ms.toolkit.tokenization.batch_encoding import BatchEncoding, as_lists
from mindspeed_ms.toolkit.tokenization.chat import ChatTemplates
from mindspeed_ms.toolkit.tokenization.saving import Saving
from mindspeed_ms.toolkit.tokenization.texts import Text, batch_of, half_character

Ids = int | Sequence[Any] | Any
"""An id, a list of ids, a list of lists, an array or a tensor."""

_CLEAN_UP = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


class PreTrainedTokenizerFast(ChatTemplates, Saving):
    """A tokenizer; ``from_pretrained`` reads one from a folder.

    Args:
        tokenizer_file: a ``tokenizer.json``.
        vocab_file: the vocabulary in the class's own form: a SentencePiece ``.model``, tiktoken
            ranks, ``vocab.json``, ``vocab.txt``.
        merges_file: ``merges.txt``, for a ``vocab.json``.
        tokenizer_object: a ``tokenizers.Tokenizer``, complete.
        **settings: special tokens (``eos_token="</s>"``), ``model_max_length``, ``padding_side``,
            ``truncation_side``, ``add_bos_token``, ``chat_template``, ... as in
            ``tokenizer_config.json``.

    Raises:
        ValueError: files that do not make such a tokenizer, or settings that do not fit.
        RuntimeError: ``tokenizers`` is not installed.
    """

    pipeline_name: ClassVar[str] = GENERIC
    """How texts are cut; one of ``data.tokenizers.pipelines.PIPELINES``."""

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        *,
        tokenizer_file: str | os.PathLike[str] | None = None,
        tokenizer_object: Any = None,
        **settings: Any,
    ) -> None:
        arguments.check(type(self).__name__, settings, self.pipeline_name)
        # A tokenizer changes its backend; the user's object stays as it is.
        source: Any = copy.deepcopy(tokenizer_object)
        if source is None:
            paths = (tokenizer_file, vocab_file, merges_file)
            json_file, vocab, merges = (
                None if path is None else Path(hub.checked_name(path)) for path in paths
            )
            source = Source(tokenizer_json=json_file, vocab=vocab, merges=merges)
        self._set_up(assemble(self.pipeline_name, source, settings))

    def _set_up(self, assembly: Assembly) -> None:
        pipeline, settings = PIPELINES[self.pipeline_name], assembly.settings
        self.name_or_path = str(settings.pop("name_or_path", ""))
        self.declared_class: str | None = settings.pop("declared_class", None)
        self.generation: Mapping[str, Any] = settings.pop("generation", {})
        self._given_input_names = settings.pop("model_input_names", None)
        self.model_input_names = list(self._given_input_names or pipeline.input_names)
        older = settings.pop("max_len", None)
        self.model_max_length: int = settings.pop("model_max_length", older) or lengths.UNLIMITED
        for name, default in (
            ("padding_side", pipeline.padding_side),
            ("truncation_side", "right"),
        ):
            setattr(self, name, lengths.check_side(name, settings.pop(name, default)))
        self.pad_token_type_id = 0
        self.clean_up_tokenization_spaces = bool(
            settings.pop("clean_up_tokenization_spaces", False)
        )
        self.split_special_tokens = bool(settings.pop("split_special_tokens", False))
        self.chat_template = settings.pop("chat_template", None)
        if isinstance(self.chat_template, list):
            named = {entry["name"]: entry["template"] for entry in self.chat_template}
            self.chat_template = named
        backend = assembly.backend
        self._own_lengths = (backend.truncation, backend.padding)
        backend.encode_special_tokens = self.split_special_tokens
        # Last: from here on attributes like eos_token reach the special tokens.
        self._assembly = assembly

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **settings: Any
    ) -> PreTrainedTokenizerFast:
        """Read a tokenizer from local files.

        Args:
            pretrained_model_name_or_path: a folder; a name, looked for as ``toolkit.hub`` says; or
                a single ``tokenizer.json`` or ``.model`` file.
            **settings: go before those of the folder.

        Raises:
            OSError: no such files; says where they were looked for.
            ValueError: unusable files or settings.
        """
        settings = arguments.without_hub(cls.__name__, settings)
        subfolder = settings.pop("subfolder", "") or ""
        path = Path(hub.checked_name(pretrained_model_name_or_path))
        if not path.is_file():
            path = hub.folder_of(
                os.path.join(pretrained_model_name_or_path, subfolder),
                WANTED,
                "give the folder of a tokenizer",
            )
        arguments.check(cls.__name__, settings, cls.pipeline_name)
        made = cls.__new__(cls)
        with read_from(path):
            folder = open_folder(path, cls.pipeline_name, settings)
            extra = {
                "name_or_path": str(pretrained_model_name_or_path),
                "declared_class": folder.declared,
                "generation": folder.generation,
            }
            made._set_up(assemble(cls.pipeline_name, folder.source, folder.settings | extra))
        return made

    # ---- the vocabulary ----

    @property
    def backend_tokenizer(self) -> Any:
        """The ``tokenizers.Tokenizer`` that does the work."""
        return self._assembly.backend

    @property
    def is_fast(self) -> bool:
        """True: encoding is compiled code."""
        return True

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, added tokens excluded."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        """Entries of the vocabulary, added tokens included."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id -> added token, with its properties."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Added token -> id."""
        return {token.content: n for n, token in sorted(self.added_tokens_decoder.items())}

    def get_added_vocab(self) -> dict[str, int]:
        """Added token -> id."""
        return self.added_tokens_encoder

    @property
    def add_bos_token(self) -> bool:
        """Whether texts get the begin token; set it to change that."""
        return self._assembly.add_bos_token

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._assembly.add_bos_token = bool(value)
        self._assembly.put_around()

    @property
    def add_eos_token(self) -> bool:
        """Whether texts get the end token; set it to change that."""
        return self._assembly.add_eos_token

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._assembly.add_eos_token = bool(value)
        self._assembly.put_around()

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Id of a token, or ids of several; unknown ones become the unknown token's."""
        if not isinstance(tokens, str | list | tuple):
            raise TypeError(f"tokens are {given.shown(tokens)}; give a text, or a list of texts")
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        number = self._number_of(tokens)
        if number is not None or tokens == self.unk_token:
            return number
        return self.unk_token_id

    def _number_of(self, token: str) -> int | None:
        try:
            return self.backend_tokenizer.token_to_id(token)
        except UnicodeEncodeError:  # half a character is in no vocabulary
            return None

    def convert_ids_to_tokens(self, ids: Ids, skip_special_tokens: bool = False) -> Any:
        """Token of an id, or tokens of several; None where no token has the id."""
        skip_special_tokens = given.switch("skip_special_tokens", skip_special_tokens)
        ids = as_lists(ids)
        if not isinstance(ids, list):
            return self.backend_tokenizer.id_to_token(given.token_id(ids))
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        numbers = map(given.token_id, ids)
        return [self.backend_tokenizer.id_to_token(n) for n in numbers if n not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Text of tokens."""
        tokens = given.rows("tokens", tokens, str)
        decoder = self.backend_tokenizer.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens put around a text, or around a pair of texts."""
        return self.backend_tokenizer.num_special_tokens_to_add(given.switch("pair", pair))

    # ---- texts to ids ----

    def __call__(  # noqa: PLR0913  (the arguments of transformers)
        self,
        text: Text | None = None,
        text_pair: Text | None = None,
        text_target: Text | None = None,
        text_pair_target: Text | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Encode a text, a pair of texts, or a batch of either.

        Args:
            text: a text or a list of them.
            text_pair: second text of each pair.
            text_target: texts whose ids come out as ``labels``.
            text_pair_target: second texts of those.
            add_special_tokens: put the tokenizer's special tokens around each text.
            padding: True or ``longest`` of the batch, ``max_length``, or False.
            truncation: True or ``longest_first``, ``only_first``, ``only_second``, or False.
            max_length: tokens; alone it truncates. None: the model's length.
            stride: tokens that an overflowing part repeats of the part before.
            is_split_into_words: texts are lists of words.
            pad_to_multiple_of: padded lengths are a multiple of it.
            padding_side: ``left`` or ``right``. None: the tokenizer's.
            return_tensors: ``ms``, ``np``, or None for lists; tensors always have a batch axis.
            return_token_type_ids: which text of a pair a token is of. None: as
                ``model_input_names`` says.
            return_attention_mask: 0 where padded. None: as ``model_input_names`` says.
            return_overflowing_tokens: what is cut off makes further rows.
            return_special_tokens_mask: 1 for special tokens.
            return_offsets_mapping: characters of each token.
            return_length: number of tokens, padding included.
            split_special_tokens: special tokens spelled out are text like any other.
            verbose: accepted for ``transformers``' sake; nothing depends on it.

        Raises:
            ValueError: arguments that do not fit each other, or padding without a pad token.
        """
        if text is None and text_target is None:
            raise ValueError("nothing to encode; give text or text_target")
        found = lengths.lengths_of(
            padding, truncation, max_length, pad_to_multiple_of, self.model_max_length
        )
        self._set_backend(found, stride, padding_side, split_special_tokens)
        names = self._entries(
            token_type_ids=return_token_type_ids,
            attention_mask=return_attention_mask,
            special_tokens_mask=return_special_tokens_mask,
            offset_mapping=return_offsets_mapping,
            length=return_length,
        )

        def encode(text: Any, pair: Text | None) -> BatchEncoding:
            rows, is_batch = batch_of(text, pair, is_split_into_words)
            encodings = self._encodings(rows, add_special_tokens, is_split_into_words)
            keep = is_batch or return_tensors is not None or return_overflowing_tokens
            return _collected(encodings, names, return_overflowing_tokens, keep, return_tensors)

        if text is None:
            return encode(text_target, text_pair_target)
        result = encode(text, text_pair)
        if text_target is not None:
            result["labels"] = encode(text_target, text_pair_target)["input_ids"]
        return result

    def _set_backend(
        self, found: lengths.Lengths, stride: int, side: str | None, split: bool | None
    ) -> None:
        """Tell the library how the next texts are encoded."""
        backend = self.backend_tokenizer
        filling = self._filling(side) if found.pads else None
        lengths.set_on(backend, found, stride, self.truncation_side, filling)
        whole = self.split_special_tokens if split is None else split
        backend.encode_special_tokens = given.switch("split_special_tokens", whole)

    def _entries(self, **wanted: bool | None) -> list[str]:
        """Names in a call's result; what is None goes by ``model_input_names``."""
        usual = self.model_input_names
        for name, is_wanted in wanted.items():
            if is_wanted is not None:
                given.switch(f"return_{name}", is_wanted)
        return [
            "input_ids",
            *(
                n
                for n, is_wanted in wanted.items()
                if is_wanted or is_wanted is None and n in usual
            ),
        ]

    def _encodings(self, rows: list[Any], add_special_tokens: bool, is_split: bool) -> list[Any]:
        try:
            return self.backend_tokenizer.encode_batch(
                rows, add_special_tokens=add_special_tokens, is_pretokenized=is_split
            )
        except BaseException as error:
            if not optional_libraries.is_fault(error):
                raise
            raise ValueError(
                half_character(rows)
                or f"the texts cannot be encoded as asked ({optional_libraries.one_line(error)}); "
                "change truncation, max_length or stride"
            ) from error

    def _filling(self, side: str | None) -> lengths.Filling:
        number = self.pad_token_id
        if number is None:
            number = self.generation.get("pad_token_id")
        if number is None:
            raise ValueError(
                "the tokenizer has no pad token to pad with; set one (tokenizer.pad_token = "
                "tokenizer.eos_token) or add one (tokenizer.add_special_tokens({'pad_token': "
                "'<pad>'}))"
            )
        return lengths.Filling(
            side=lengths.check_side("padding_side", side or self.padding_side),
            token_id=number,
            token=self.backend_tokenizer.id_to_token(number) or "",
            type_id=self.pad_token_type_id,
        )

    def encode(self, text: Text, text_pair: Text | None = None, **options: Any) -> Any:
        """Ids of a text or a pair; the options are those of a call."""
        return self(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: Text, text_pair: Text | None = None, **options: Any) -> Any:
        """Older name of a call with one text."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], **options: Any) -> Any:
        """Older name of a call with several texts or (text, text) pairs."""
        pairs = given.rows("batch_text_or_text_pairs", batch_text_or_text_pairs)
        if pairs and isinstance(pairs[0], tuple):
            return self([pair[0] for pair in pairs], [pair[1] for pair in pairs], **options)
        return self(pairs, **options)

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Tokens of a text, as they stand in the vocabulary."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Bring encoded texts to one length, as a loader's collate function does.

        Args:
            encoded_inputs: results of calls, or one result for a batch.
            padding: as in a call.
            max_length: as in a call; longer rows stay as they are.
            pad_to_multiple_of: as in a call.
            padding_side: as in a call.
            return_attention_mask: None: as ``model_input_names`` says.
            return_tensors: as in a call.
            verbose: accepted for ``transformers``' sake; nothing depends on it.

        Raises:
            ValueError: no ``input_ids``, or padding without a pad token.
        """
        if not isinstance(encoded_inputs, Mapping):
            encoded_inputs = given.rows("encoded_inputs", encoded_inputs, Mapping)
            names = encoded_inputs[0].keys() if encoded_inputs else ()
            if any(row.keys() != names for row in encoded_inputs):
                raise ValueError("encoded_inputs have other names in other rows; encode them alike")
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in names}
        rows = {name: as_lists(value) for name, value in encoded_inputs.items()}
        if "input_ids" not in rows:
            raise ValueError(
                f"nothing to pad: there are {', '.join(map(str, rows)) or 'no'} entries, but no "
                "input_ids"
            )
        is_batch = bool(rows["input_ids"]) and isinstance(rows["input_ids"][0], list)
        if not is_batch:
            rows = {name: [value] for name, value in rows.items()}
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        if return_attention_mask and "attention_mask" not in rows:
            rows["attention_mask"] = [[1] * len(row) for row in rows["input_ids"]]
        found = lengths.lengths_of(
            padding, False, max_length, pad_to_multiple_of, self.model_max_length
        )
        if found.pads:
            filling = self._filling(padding_side)
            fillers = {
                "input_ids": filling.token_id,
                "attention_mask": 0,
                "token_type_ids": filling.type_id,
                "special_tokens_mask": 1,
            }
            rows = lengths.pad_rows(rows, found, filling.side, fillers)
        if not is_batch:
            rows = {name: value[0] for name, value in rows.items()}
        return BatchEncoding(rows, tensor_type=return_tensors)

    # ---- ids to texts ----

    def decode(
        self,
        token_ids: Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Text of ids; a list of texts for a batch.

        Args:
            token_ids: an id, ids, or rows of ids, as lists, arrays or tensors.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: take away spaces before punctuation, where tokens are
                words (BPE knows its spaces). None: as the tokenizer is set.
        """
        skip_special_tokens = given.switch("skip_special_tokens", skip_special_tokens)
        ids = as_lists(token_ids)
        if isinstance(ids, Mapping) and "input_ids" in ids:
            ids = ids["input_ids"]
        if not isinstance(ids, list):
            ids = [ids]
        if ids and isinstance(ids[0], list):
            return [
                self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids
            ]
        ids = [given.token_id(number) for number in ids]
        text = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        cleans = clean_up_tokenization_spaces
        if cleans is None:
            cleans = self.clean_up_tokenization_spaces
        if cleans and type(self.backend_tokenizer.model).__name__ != "BPE":
            for spaced, clean in _CLEAN_UP.items():
                text = text.replace(spaced, clean)
        return text

    def batch_decode(
        self,
        sequences: Sequence[Any],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Texts of rows of ids."""
        if isinstance(sequences, Sequence) and len(sequences) == 0:
            return []
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size="
            f"{self.vocab_size}, model_max_length={self.model_max_length}, padding_side="
            f"{self.padding_side!r}, truncation_side={self.truncation_side!r}, special_tokens="
            f"{self.special_tokens_map})"
        )


_READERS = {
    "input_ids": lambda encoding: encoding.ids,
    "token_type_ids": lambda encoding: encoding.type_ids,
    "attention_mask": lambda encoding: encoding.attention_mask,
    "special_tokens_mask": lambda encoding: encoding.special_tokens_mask,
    "offset_mapping": lambda encoding: encoding.offsets,
    "length": lambda encoding: len(encoding.ids),
}


def _collected(
    encodings: Sequence[Any],
    names: list[str],
    with_overflow: bool,
    keeps_batch: bool,
    tensor_type: str | None,
) -> BatchEncoding:
    """One entry a name from the library's results."""
    parts, samples = [], []
    for number, encoding in enumerate(encodings):
        own = [encoding, *encoding.overflowing] if with_overflow else [encoding]
        parts += own
        samples += [number] * len(own)
    data = {name: [_READERS[name](part) for part in parts] for name in names}
    if with_overflow:
        data["overflow_to_sample_mapping"] = samples
    if not keeps_batch:
        data = {name: rows if name == "length" else rows[0] for name, rows in data.items()}
    return BatchEncoding(data, parts, tensor_type)
