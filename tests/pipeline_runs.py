# SPDX-License-Identifier: Apache-2.0
"""Short training runs of a small GPT on every rank, for tests of layouts."""

from __future__ import annotations

import numpy as np

from mindspeed_ms.backend import memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import named_parameters, shard_of
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.training import initialize_megatron, pretrain

VOCAB, SEQ, GLOBAL_BATCH = 64, 16, 8
BASE = (
    "--num-layers 8 --hidden-size 16 --ffn-hidden-size 32 --num-attention-heads 2 --seq-length 16 "
    "--max-position-embeddings 16 --micro-batch-size 1 --global-batch-size 8 --train-iters 3 "
    "--lr 1e-2 --lr-decay-style constant --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 "
    "--init-method-std 0.1 --seed 77 --eval-iters 0 --log-interval 1000 --attention-dropout 0 "
    "--hidden-dropout 0 --tokenizer-type NullTokenizer --vocab-size 63 "
    "--make-vocab-size-divisible-by 16 --logging-level 30"
).split()
LLAMA = (
    "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
    "--untie-embeddings-and-output-weights"
).split()
GPT2 = "--position-embedding-type learned_absolute".split()
STYLES = {"llama": LLAMA, "gpt2": GPT2}


def sample(index, length=SEQ):
    """Tokens of a numbered sample: the same wherever it is asked for."""
    ids = np.random.default_rng(index).integers(0, VOCAB - 1, length + 1).astype(np.int32)
    mask = np.ones(length, np.float32)
    mask[: index % 3] = 0.0
    return {
        "tokens": ids[:-1],
        "labels": ids[1:],
        "loss_mask": mask,
        "position_ids": np.arange(length, dtype=np.int32),
    }


def micro_batches(length_of=lambda index: SEQ):
    """This rank's micro-batches, dealt out as Megatron's sampler does."""
    ranks = parallel_state.get_data_parallel_world_size()
    index = parallel_state.get_data_parallel_rank()
    while True:
        fields = sample(index, length_of(index))
        yield {name: value[None] for name, value in fields.items()}
        index += ranks


def start(style, flags):
    """Groups, seeds and configuration."""
    initialize_megatron(argv=[*BASE, *STYLES[style], *flags])
    return get_all_config()


def provider(pre_process, post_process):
    """A model of the run that is being opened."""
    return GPTModel(
        get_all_config().model_config, pre_process=pre_process, post_process=post_process
    )


def train(style, flags):
    """Losses and gradient norms of each iteration."""
    config = start(style, flags)
    steps = []

    class Endless:
        def __iter__(self):
            return micro_batches()

    pretrain(None, provider, all_config=config, train_data_loader=Endless(), on_step=steps.append)
    return [(step.losses["lm loss"], step.grad_norm) for step in steps]


def weights(chunks):
    """Local parameters by name, with the position of this rank's part."""
    return {
        name: (memory.as_numpy(param).copy(), shard_of(param).shared)
        for chunk in chunks
        for name, param in named_parameters(chunk)
    }
