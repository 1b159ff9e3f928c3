#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A launch script as people write them for Megatron-LM. Nothing in it knows this project;
# bring_a_megatron_script.sh runs it.
export CUDA_DEVICE_MAX_CONNECTIONS=1

GPUS_PER_NODE=4
DATA_PATH=${DATA_PATH:-data/austen/austen_text_document}
TOKENIZER=${TOKENIZER:-data/austen/tok.model}

DISTRIBUTED_ARGS="--nproc_per_node $GPUS_PER_NODE --nnodes 1 --master_addr localhost --master_port ${MASTER_PORT:-6000}"
MODEL_ARGS="
    --num-layers 32 --hidden-size 4096 --ffn-hidden-size 11008 --num-attention-heads 32
    --seq-length 4096 --max-position-embeddings 4096
    --position-embedding-type rope --no-position-embedding
    --normalization RMSNorm --swiglu --disable-bias-linear --untie-embeddings-and-output-weights
    --attention-dropout 0.0 --hidden-dropout 0.0 --use-flash-attn --bf16
"
TRAINING_ARGS="
    --micro-batch-size 1 --global-batch-size 256 --train-iters 5000
    --lr 3.0e-4 --min-lr 3.0e-5 --lr-decay-style cosine --lr-warmup-iters 200
    --weight-decay 0.1 --clip-grad 1.0 --adam-beta1 0.9 --adam-beta2 0.95
"
PARALLEL_ARGS="
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer
"
DATA_ARGS="
    --data-path $DATA_PATH --split 90,10,0 --tokenizer-type SentencePieceTokenizer --tokenizer-model $TOKENIZER
"
OUTPUT_ARGS="--log-interval 1 --eval-interval 1000 --eval-iters 10"

torchrun $DISTRIBUTED_ARGS pretrain_gpt.py \
    $MODEL_ARGS \
    $TRAINING_ARGS \
    $PARALLEL_ARGS \
    $DATA_ARGS \
    $OUTPUT_ARGS \
    "$@"
