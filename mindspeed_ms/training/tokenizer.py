# SPDX-License-Identifier: Apache-2.0
"""Megatron's path of ``mindspeed_ms.data.tokenizers``."""

from mindspeed_ms.data.tokenizers import (
    TOKENIZER_TYPES,
    GPT2BPETokenizer,
    GPTSentencePieceTokenizer,
    HuggingFaceTokenizer,
    Llama2Tokenizer,
    NullTokenizer,
    SentencePieceTokenizer,
    SFTTokenizer,
    TikTokenizer,
    Tokenizer,
    TokenizerSettings,
    build_tokenizer,
    vocab_size_with_padding,
)

__all__ = [
    "GPT2BPETokenizer",
    "GPTSentencePieceTokenizer",
    "HuggingFaceTokenizer",
    "Llama2Tokenizer",
    "NullTokenizer",
    "SFTTokenizer",
    "SentencePieceTokenizer",
    "TOKENIZER_TYPES",
    "TikTokenizer",
    "Tokenizer",
    "TokenizerSettings",
    "build_tokenizer",
    "vocab_size_with_padding",
]
