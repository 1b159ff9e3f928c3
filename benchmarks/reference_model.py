# SPDX-License-Identifier: Apache-2.0
"""The model most benchmarks train, a Llama of 31.6 million parameters on made-up tokens; others."""

from __future__ import annotations

COMMON = (
    "--lr 1e-4 --clip-grad 1.0 --mock-data --tokenizer-type NullTokenizer --vocab-size 8000 "
    "--eval-iters 0 --log-interval 1000000"
).split()
"""Of every model: no evaluation, made-up tokens."""

_LLAMA = (
    "--group-query-attention --swiglu --normalization RMSNorm --position-embedding-type rope "
    "--disable-bias-linear --attention-dropout 0 --hidden-dropout 0"
)
_SIZES = (
    "--num-layers 8 --hidden-size 512 --num-attention-heads 8 --seq-length 256 "
    "--max-position-embeddings 256 --padded-vocab-size 8192 --micro-batch-size 4"
)

FLAGS = (
    f"{_SIZES} --ffn-hidden-size 1376 --num-query-groups 4 {_LLAMA} "
    "--untie-embeddings-and-output-weights"
).split() + COMMON

TIED_FLAGS = f"{_SIZES} --ffn-hidden-size 1376 --num-query-groups 4 {_LLAMA}".split() + COMMON
"""The same with the table of tokens as the head."""

GPT2_FLAGS = (
    f"{_SIZES} --ffn-hidden-size 2048 --position-embedding-type learned_absolute "
    "--attention-dropout 0.1 --hidden-dropout 0.1"
).split() + COMMON
"""LayerNorm, biases, gelu, learned positions, dropout, tied head."""

MODELS = {"llama": FLAGS, "tied llama": TIED_FLAGS, "gpt2": GPT2_FLAGS}
