# SPDX-License-Identifier: Apache-2.0
"""Flags of commands that build a tokenizer without a run."""

from __future__ import annotations

import argparse

from mindspeed_ms.data.tokenizers.tokenizer import TOKENIZER_TYPES, TokenizerSettings


def add_tokenizer_flags(parser: argparse._ActionsContainer, is_required: bool = True) -> None:
    """One flag per field of ``TokenizerSettings``, under Megatron's names."""
    default, add = TokenizerSettings(tokenizer_type=""), parser.add_argument
    types = ", ".join(TOKENIZER_TYPES)
    add("--tokenizer-type", required=is_required, help=f"one of {types}")
    add(
        *("--tokenizer-model", "--tokenizer-name-or-path"),
        help="SentencePiece model, tiktoken file or Hugging Face folder",
    )
    add("--vocab-file", help="vocab.json of GPT2BPETokenizer")
    add("--merge-file", help="merges.txt of GPT2BPETokenizer")
    add("--vocab-size", type=int, help="number of ids of NullTokenizer or TikTokenizer")
    add("--vocab-extra-ids", type=int, default=0, help="sentinel tokens of SentencePieceTokenizer")
    add("--tiktoken-pattern", help="v1 or v2")
    add(
        "--tiktoken-num-special-tokens",
        type=int,
        default=default.tiktoken_num_special_tokens,
        help="ids kept for special tokens",
    )
    add(
        *("--tiktoken-special-tokens", "--tokenizer-special-tokens"),
        nargs="+",
        help="names of the first special tokens, or texts that become tokens of SentencePiece",
    )
    add("--tokenizer-sentencepiece-legacy", action="store_true", help="with such texts")
    add(
        *(
            "--no-tokenizer-sentencepiece-ignore-extra-whitespaces",
            "--disable-tokenizer-sentencepiece-ignore-extra-whitespaces",
        ),
        dest="tokenizer_sentencepiece_ignore_extra_whitespaces",
        action="store_false",
        help="keep each of several spaces, where the SentencePiece model would not",
    )
    add("--null-tokenizer-eod-id", type=int, help="end of documents of NullTokenizer")
    add("--null-tokenizer-pad-id", type=int, default=-1, help="padding of NullTokenizer")
    add(
        *("--tokenizer-hf-no-use-fast", "--tokenizer-not-use-fast"),
        dest="tokenizer_use_fast",
        action="store_false",
        help="take the slow implementation of a Hugging Face tokenizer",
    )
    add("--trust-remote-code", action="store_true", help="run code in a Hugging Face folder")
    add(
        "--sft-tokenizer-prompt-format",
        default=default.sft_tokenizer_prompt_format,
        help="of SFTTokenizer",
    )
