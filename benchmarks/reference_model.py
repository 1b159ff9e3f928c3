# SPDX-License-Identifier: Apache-2.0
"""The model most benchmarks train: a Llama of 31.6 million parameters on made-up tokens."""

from __future__ import annotations

FLAGS = (
    "--num-layers 8 --hidden-size 512 --ffn-hidden-size 1376 --num-attention-heads 8 "
    "--group-query-attention --num-query-groups 4 --seq-length 256 --max-position-embeddings 256 "
    "--padded-vocab-size 8192 --micro-batch-size 4 --swiglu --normalization RMSNorm "
    "--position-embedding-type rope --disable-bias-linear --untie-embeddings-and-output-weights "
    "--attention-dropout 0 --hidden-dropout 0 --lr 1e-4 --clip-grad 1.0 --mock-data "
    "--tokenizer-type NullTokenizer --vocab-size 8000 --eval-iters 0 --log-interval 1000000"
).split()
