# SPDX-License-Identifier: Apache-2.0
"""Tokenizers, built from Megatron's flags."""

from mindspeed_ms.data.tokenizers.bpe_tokenizers import GPT2BPETokenizer, HuggingFaceTokenizer
from mindspeed_ms.data.tokenizers.sentencepiece_tokenizer import (
    GPTSentencePieceTokenizer,
    Llama2Tokenizer,
    SentencePieceTokenizer,
)
from mindspeed_ms.data.tokenizers.sft_tokenizer import SFTTokenizer
from mindspeed_ms.data.tokenizers.tiktoken_tokenizer import TikTokenizer
from mindspeed_ms.data.tokenizers.tokenizer import (
    TOKENIZER_TYPES,
    NullTokenizer,
    Tokenizer,
    TokenizerSettings,
    build_tokenizer,
    vocab_size_with_padding,
)

__all__ = [
    "TOKENIZER_TYPES",
    "GPT2BPETokenizer",
    "GPTSentencePieceTokenizer",
    "HuggingFaceTokenizer",
    "Llama2Tokenizer",
    "NullTokenizer",
    "SFTTokenizer",
    "SentencePieceTokenizer",
    "TikTokenizer",
    "Tokenizer",
    "TokenizerSettings",
    "build_tokenizer",
    "vocab_size_with_padding",
]
