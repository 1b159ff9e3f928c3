# SPDX-License-Identifier: Apache-2.0
"""How each class of tokenizer turns a text into pieces, given its vocabulary.

A folder names its class in ``tokenizer_config.json``. For the classes here the steps around the
vocabulary (normalization, first cut, decoding, special tokens around a text) are the class's own;
any other class takes them from ``tokenizer.json``.

Source: ``transformers`` 5.24 (the steps of each class; results are compared with it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.data.tokenizers.sentencepiece_model import SPACE, Tokenizer

GENERIC = "PreTrainedTokenizerFast"
"""Class of a folder whose ``tokenizer.json`` says everything."""

Settings = Mapping[str, Any]
"""Arguments of a class, by name."""


class Vocabulary(NamedTuple):
    """What a class builds its model from."""

    entries: dict[str, int] | list[tuple[str, float]]
    """Token -> id; for Unigram, token and score in the order of the ids."""

    merges: list[tuple[str, str]]
    charsmap: bytes = b""
    """Compiled rules of normalization of a SentencePiece model; empty: none."""


Build = Callable[[Any, Vocabulary, Settings], Tokenizer]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A class of tokenizer."""

    build: Build | None
    """Makes the steps around a vocabulary. None: they are in ``tokenizer.json``."""

    tokens: Mapping[str, str | None] = field(default_factory=dict)
    """Special tokens when the folder does not say otherwise."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments and what they are when not given."""

    padding_side: str = "right"
    input_names: tuple[str, ...] = ("input_ids", "attention_mask")
    """What a call returns."""

    vocab_file: str = "tokenizer.model"
    merges_file: str | None = None
    around: str = "bos and eos"
    """Special tokens around a text: ``bos and eos`` (by ``add_bos_token``, ``add_eos_token``),
    ``eos`` (always, as T5), ``cls and sep`` (as BERT) or ``roberta``."""

    rebuilds_around: bool = False
    """Ignores the ``post_processor`` of ``tokenizer.json``."""

    adds_special_again: bool = False
    """Named tokens are special even where the folder describes them otherwise."""


def _byte_level_bpe(library: Any, vocabulary: Vocabulary, **options: Any) -> Tokenizer:
    model = library.models.BPE(
        vocabulary.entries,
        vocabulary.merges,
        continuing_subword_prefix="",
        end_of_word_suffix="",
        fuse_unk=False,
        **options,
    )
    tokenizer = library.Tokenizer(model)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _gpt2(library: Any, vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = _byte_level_bpe(library, vocabulary)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(
        add_prefix_space=bool(settings["add_prefix_space"])
    )
    return tokenizer


def _gpt_neox(library: Any, vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = _gpt2(library, vocabulary, settings)
    tokenizer.normalizer = library.normalizers.NFC()
    return tokenizer


def _cohere(library: Any, vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = _gpt_neox(library, vocabulary, settings)
    cut = library.pre_tokenizers
    digits = cut.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = cut.Sequence([digits, tokenizer.pre_tokenizer])
    return tokenizer


# The first cuts that Qwen's vocabularies were made with; the second one keeps marks with letters.
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3's and others' tiktoken vocabularies: up to three digits together.
TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _cut_then_bytes(library: Any, pattern: str, add_prefix_space: bool) -> Any:
    cut = library.pre_tokenizers
    split = cut.Split(library.Regex(pattern), behavior="isolated", invert=False)
    return cut.Sequence([split, cut.ByteLevel(add_prefix_space, use_regex=False)])


def _qwen(pattern: str) -> Build:
    def build(library: Any, vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
        tokenizer = _byte_level_bpe(library, vocabulary, byte_fallback=False)
        tokenizer.normalizer = library.normalizers.NFC()
        tokenizer.pre_tokenizer = _cut_then_bytes(
            library, pattern, bool(settings["add_prefix_space"])
        )
        return tokenizer

    return build


def tiktoken_bpe(library: Any, vocabulary: Vocabulary) -> Tokenizer:
    """Byte-level BPE as tiktoken does it: a token of the vocabulary needs no merges."""
    model = library.models.BPE(vocabulary.entries, vocabulary.merges, fuse_unk=False)
    model.ignore_merges = True
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = _cut_then_bytes(library, TIKTOKEN, add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.post_processor = library.processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _byte_fallback_decoder(library: Any, strips: bool) -> Any:
    make = library.decoders
    steps = [make.Replace(SPACE, " "), make.ByteFallback(), make.Fuse()]
    return make.Sequence([*steps, make.Strip(" ", 1, 0)] if strips else steps)


def _llama(library: Any, vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = library.Tokenizer(
        library.models.BPE(vocabulary.entries, vocabulary.merges, fuse_unk=True, byte_fallback=True)
    )
    given = settings["add_prefix_space"]
    adds = True if given is None else bool(given)
    scheme = ("always" if settings["legacy"] else "first") if adds else "never"
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(
        SPACE, prepend_scheme=scheme, split=False
    )
    tokenizer.decoder = _byte_fallback_decoder(library, strips=adds)
    return tokenizer


def _gemma(library: Any, vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = library.Tokenizer(
        library.models.BPE(
            vocabulary.entries,
            vocabulary.merges,
            fuse_unk=True,
            unk_token=str(settings["unk_token"]),
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = library.normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = _byte_fallback_decoder(library, strips=False)
    return tokenizer


def _t5(library: Any, vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = library.Tokenizer(
        library.models.Unigram(vocabulary.entries, unk_id=2, byte_fallback=False)
    )
    if vocabulary.charsmap:
        tokenizer.normalizer = library.normalizers.Precompiled(vocabulary.charsmap)
    cut = library.pre_tokenizers
    metaspace = cut.Metaspace(SPACE, prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = cut.Sequence([cut.WhitespaceSplit(), metaspace])
    tokenizer.decoder = library.decoders.Metaspace(SPACE, prepend_scheme="always", split=True)
    return tokenizer


def _bert(library: Any, vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    model = library.models.WordPiece(vocabulary.entries, unk_token=str(settings["unk_token"]))
    tokenizer = library.Tokenizer(model)
    tokenizer.normalizer = library.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings["tokenize_chinese_chars"],
        strip_accents=settings["strip_accents"],
        lowercase=settings["do_lower_case"],
    )
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = library.decoders.WordPiece(prefix="##")
    return tokenizer


_END = "<|endoftext|>"
_of_gpt2_files = partial(Pipeline, vocab_file="vocab.json", merges_file="merges.txt")
_QWEN_TOKENS = {"unk_token": _END, "eos_token": _END, "pad_token": _END}

PIPELINES: dict[str, Pipeline] = {
    GENERIC: Pipeline(build=None),
    # Words are found before; the pieces are those of the model's own settings.
    "PanguAlphaTokenizer": Pipeline(
        build=None,
        tokens={
            "bos_token": "<s>",
            "eos_token": "<eot>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        },
        vocab_file="vocab.model",
    ),
    # MindFormers' class: pads with the end token and returns token types, in this order.
    "GPT2Tokenizer": _of_gpt2_files(
        build=_gpt2,
        tokens={"bos_token": _END, "eos_token": _END, "unk_token": _END, "pad_token": _END},
        options={"add_prefix_space": False, "errors": "replace"},
        input_names=("input_ids", "token_type_ids", "attention_mask"),
    ),
    "GPTNeoXTokenizer": _of_gpt2_files(
        build=_gpt_neox,
        tokens={
            "bos_token": _END,
            "eos_token": _END,
            "unk_token": _END,
            "pad_token": "<|padding|>",
        },
        options={"add_prefix_space": False, "errors": "replace", "trim_offsets": True},
        rebuilds_around=True,
    ),
    "CohereTokenizer": Pipeline(
        build=_cohere,
        tokens={
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "unk_token": "<UNK>",
            "sep_token": "<SEP>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "mask_token": "<MASK_TOKEN>",
        },
        options={
            "add_prefix_space": False,
            "errors": "replace",
            "use_default_system_prompt": False,
        },
        padding_side="left",
        vocab_file="tokenizer.json",
        adds_special_again=True,
    ),
    "Qwen2Tokenizer": _of_gpt2_files(
        build=_qwen(_QWEN),
        tokens=_QWEN_TOKENS,
        options={"add_prefix_space": None},
        adds_special_again=True,
    ),
    "Qwen3_5Tokenizer": _of_gpt2_files(
        build=_qwen(_QWEN_3_5),
        tokens=_QWEN_TOKENS,
        options={"add_prefix_space": None},
    ),
    "LlamaTokenizer": Pipeline(
        build=_llama,
        tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        options={"add_prefix_space": None, "legacy": False, "use_default_system_prompt": False},
        padding_side="left",
    ),
    "GemmaTokenizer": Pipeline(
        build=_gemma,
        tokens={
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        padding_side="left",
    ),
    "T5Tokenizer": Pipeline(
        build=_t5,
        tokens={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        options={"extra_ids": 100},
        vocab_file="spiece.model",
        around="eos",
    ),
    "BertTokenizer": Pipeline(
        build=_bert,
        tokens={
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        options={"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None},
        input_names=("input_ids", "token_type_ids", "attention_mask"),
        vocab_file="vocab.txt",
        around="cls and sep",
    ),
    "RobertaTokenizer": _of_gpt2_files(
        build=_gpt2,
        tokens={
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "cls_token": "<s>",
            "mask_token": "<mask>",
        },
        options={"add_prefix_space": False, "errors": "replace", "trim_offsets": True},
        around="roberta",
    ),
}
"""Class name -> what makes it."""


def build(name: str, vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    """The tokenizer of a class, before special tokens are added.

    Raises:
        ValueError: the vocabulary is not one for this class.
        RuntimeError: ``tokenizers`` is not installed.
    """
    library = optional_libraries.load("tokenizers", name)
    make = PIPELINES[name].build
    if make is None:
        raise ValueError(
            f"{name} has no steps of its own: it needs a tokenizer.json; name a folder that has "
            "one, or the class that the vocabulary was made for as tokenizer_class in "
            "tokenizer_config.json"
        )
    has_scores = isinstance(vocabulary.entries, list)
    if has_scores != (name == "T5Tokenizer"):
        raise ValueError(
            f"the vocabulary has {'scores (Unigram)' if has_scores else 'no scores'}, which does "
            f"not make a {name}; name the class it was made for as tokenizer_class in "
            "tokenizer_config.json"
        )
    try:
        return make(library, vocabulary, settings)
    except BaseException as error:
        if not optional_libraries.is_fault(error):
            raise
        reason = optional_libraries.one_line(error)
        raise ValueError(
            f"the vocabulary does not make a {name} ({reason}); give all files of one tokenizer, "
            "and the class they were made for as tokenizer_class in tokenizer_config.json"
        ) from error
