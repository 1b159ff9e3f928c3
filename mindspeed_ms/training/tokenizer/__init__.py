"""Tokenizers, built from Megatron's flags."""

from mindspeed_ms.training.tokenizer.tokenizer import (
    TOKENIZER_TYPES,
    GPTSentencePieceTokenizer,
    Llama2Tokenizer,
    NullTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    build_tokenizer,
    vocab_size_with_padding,
)

__all__ = [
    "TOKENIZER_TYPES",
    "GPTSentencePieceTokenizer",
    "Llama2Tokenizer",
    "NullTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "build_tokenizer",
    "vocab_size_with_padding",
]
