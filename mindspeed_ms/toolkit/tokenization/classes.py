# SPDX-License-Identifier: Apache-2.0
"""Tokenizer classes by the names that folders and users call them.

``LlamaTokenizerFast`` and the like are the same classes: there is one implementation.
"""

from __future__ import annotations

from mindspeed_ms.toolkit import registry
from mindspeed_ms.toolkit.tokenization.base import PreTrainedTokenizerFast


class GPT2Tokenizer(PreTrainedTokenizerFast):
    """Byte-level BPE of GPT-2; ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``.

    As MindFormers' class it returns ``token_type_ids`` and pads with ``<|endoftext|>``.
    """

    pipeline_name = "GPT2Tokenizer"


class GPTNeoXTokenizer(PreTrainedTokenizerFast):
    """Byte-level BPE of GPT-NeoX, Pythia and OLMo."""

    pipeline_name = "GPTNeoXTokenizer"


class CohereTokenizer(PreTrainedTokenizerFast):
    """Byte-level BPE with single digits, of Command R."""

    pipeline_name = "CohereTokenizer"


class Qwen2Tokenizer(PreTrainedTokenizerFast):
    """Byte-level BPE of Qwen 2, 2.5 and 3; ``qwen.tiktoken`` of the first Qwen too."""

    pipeline_name = "Qwen2Tokenizer"


class Qwen3_5Tokenizer(PreTrainedTokenizerFast):  # noqa: N801  (the name in the files)
    """Byte-level BPE of Qwen 3.5, which keeps combining marks with their letters."""

    pipeline_name = "Qwen3_5Tokenizer"


class LlamaTokenizer(PreTrainedTokenizerFast):
    """SentencePiece BPE with bytes for unknown characters; ``tokenizer.model`` of Llama 2.

    The begin token goes before each text where ``add_bos_token`` or ``tokenizer.json`` says so.
    """

    pipeline_name = "LlamaTokenizer"


class GemmaTokenizer(PreTrainedTokenizerFast):
    """SentencePiece BPE of Gemma 1, 2 and 3; spaces stay with the word before."""

    pipeline_name = "GemmaTokenizer"


class T5Tokenizer(PreTrainedTokenizerFast):
    """SentencePiece Unigram with sentinel tokens ``<extra_id_0>`` ..."""

    pipeline_name = "T5Tokenizer"


class BertTokenizer(PreTrainedTokenizerFast):
    """WordPiece between ``[CLS]`` and ``[SEP]``; ``vocab.txt`` or ``tokenizer.json``."""

    pipeline_name = "BertTokenizer"


class RobertaTokenizer(PreTrainedTokenizerFast):
    """GPT-2's byte-level BPE between ``<s>`` and ``</s>``."""

    pipeline_name = "RobertaTokenizer"


LlamaTokenizerFast = LlamaTokenizer
GPT2TokenizerFast = GPT2Tokenizer

CLASSES: tuple[type[PreTrainedTokenizerFast], ...] = (
    PreTrainedTokenizerFast,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    CohereTokenizer,
    Qwen2Tokenizer,
    Qwen3_5Tokenizer,
    LlamaTokenizer,
    GemmaTokenizer,
    T5Tokenizer,
    BertTokenizer,
    RobertaTokenizer,
)
"""What folders are opened with."""

for _class in CLASSES:
    registry.TOKENIZERS.add(_class.__name__, _class)
