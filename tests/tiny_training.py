# SPDX-License-Identifier: Apache-2.0
"""A small language model and its training loop, for tests of data parallelism and optimizers."""

from __future__ import annotations

import contextlib

import mindspore as ms
import numpy as np
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.config import ModelParallelConfig, OptimizerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.distributed import finalize_model_grads
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
)
from mindspeed_ms.core.optimizer import get_megatron_optimizer
from mindspeed_ms.core.parameter import ShardSpec, create_parameter, named_parameters, shard_of
from mindspeed_ms.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    vocab_parallel_cross_entropy,
)
from mindspeed_ms.core.tensor_parallel.layers import column_parallel_linear

VOCAB, HIDDEN, FFN, SEQ, BATCH = 48, 16, 40, 6, 2


def array(seed, *shape, scale=0.3):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


class Norm(Cell):
    def __init__(self, dtype, sequence_parallel):
        super().__init__()
        self.weight = create_parameter(
            (HIDDEN,),
            lambda shape: np.ones(shape, np.float32),
            dtype=dtype,
            shard=ShardSpec(partial_gradient=sequence_parallel),
        )

    def construct(self, x):
        return ops.rms_norm(x, self.weight, 1e-5)


class Block(Cell):
    def __init__(self, seed, config, dtype):
        super().__init__()
        self.norm = Norm(dtype, config.sequence_parallel)
        self.up = ColumnParallelLinear(
            HIDDEN,
            FFN,
            config=config,
            init_method=lambda shape: array(seed, *shape),
            param_init_dtype=dtype,
        )
        self.down = RowParallelLinear(
            FFN,
            HIDDEN,
            config=config,
            init_method=lambda shape: array(seed + 1, *shape),
            bias=True,
            input_is_parallel=True,
            skip_bias_add=False,
            param_init_dtype=dtype,
        )

    def construct(self, x):
        y, _ = self.up(self.norm(x))
        y, _ = self.down(ops.gelu(y, None))
        return x + y


class Model(Cell):
    """Embedding, blocks, tied or separate head."""

    def __init__(self, config, dtype=ms.float32, tied=True, blocks=3):
        super().__init__()
        self.embedding = VocabParallelEmbedding(
            VOCAB,
            HIDDEN,
            init_method=lambda shape: array(1, *shape),
            config=config,
            reduce_scatter_embeddings=config.sequence_parallel,
            param_init_dtype=dtype,
        )
        self.blocks = ms.nn.CellList([Block(10 * i + 10, config, dtype) for i in range(blocks)])
        self.norm = Norm(dtype, config.sequence_parallel)
        self.head = None
        if not tied:
            self.head = ColumnParallelLinear(
                HIDDEN,
                VOCAB,
                config=config,
                init_method=lambda shape: array(2, *shape),
                bias=False,
                param_init_dtype=dtype,
            )
        self.plan = self.embedding.plan

    def construct(self, ids, labels):
        """ids, labels [b, s] -> mean loss."""
        if self.plan.sequence_parallel:
            x = self.embedding(ids)
        else:
            x = self.embedding(memory.contiguous(ids.swapaxes(0, 1)))
        for block in self.blocks:
            x = block(x)
        table = self.embedding.weight if self.head is None else self.head.weight
        logits = column_parallel_linear(self.norm(x), table, None, self.plan)
        if logits.dtype != ms.float32:
            logits = logits.astype(ms.float32)
        labels = memory.contiguous(labels.swapaxes(0, 1))
        return vocab_parallel_cross_entropy(logits, labels).mean()


def batches(step, num_microbatches):
    """All micro-batches of a step, the same whatever the layout."""
    rng = np.random.default_rng(1000 + step)
    ids = rng.integers(0, VOCAB, (num_microbatches, BATCH, SEQ + 1))
    return [(row[:, :-1].astype(np.int32), row[:, 1:].astype(np.int32)) for row in ids]


def start(tensor=1, instances=1):
    comm.init_process_group()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor, num_distributed_optimizer_instances=instances
    )


def build(ddp=None, optimizer=None, tensor=1, dtype="float32", scaler=None, **model):
    """(wrapped model, optimizer)."""
    config = ModelParallelConfig(
        tensor_model_parallel_size=tensor,
        sequence_parallel=model.pop("sequence_parallel", False),
        gradient_accumulation_fusion=model.pop("fused", True),
    )
    net = Model(config, getattr(ms, dtype), **model)
    net.set_train(True)
    for name, param in named_parameters(net):
        param.name = name
    wrapped = DistributedDataParallel(DistributedDataParallelConfig(**(ddp or {})), net)
    values = {"learning_rate": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1, "clip_grad": 1.0}
    settings = OptimizerConfig(**{**values, **(optimizer or {})})
    return wrapped, get_megatron_optimizer(settings, [wrapped], True, grad_scaler=scaler)


def forward_backward(model, step, num_microbatches, loss_scale=1.0, poison=None):
    """Run this rank's micro-batches; ``num_microbatches`` counts those of all ranks."""
    group = parallel_state.get_data_parallel_group()
    mine = batches(step, num_microbatches)[group.rank :: group.size]
    losses = []
    for index, (ids, labels) in enumerate(mine):
        seed = ms.Tensor(loss_scale / len(mine), ms.float32)
        if poison is not None and index == len(mine) - 1:
            seed = ms.Tensor(poison, ms.float32)
        is_last = index == len(mine) - 1
        with autograd.recording(), contextlib.nullcontext() if is_last else model.no_sync():
            loss = model(memory.from_numpy(ids), memory.from_numpy(labels))
            autograd.backward(loss, seed)
        losses.append(float(loss.asnumpy()))
    return losses


def train(model, optimizer, steps=4, num_microbatches=8, first=0, lr=0.05):
    """Losses (of this rank), gradient norms and zero counts of some steps."""
    out = {"loss": [], "norm": [], "zeros": []}
    for step in range(first, first + steps):
        model.zero_grad_buffer()
        losses = forward_backward(model, step, num_microbatches, optimizer.loss_scale)
        finalize_model_grads([model])
        optimizer.set_schedule(lr, 0.1, None)
        result = optimizer.step()
        out["loss"].append(np.mean(losses))
        out["norm"].append(result.grad_norm)
        out["zeros"].append(result.num_zeros_in_grad)
    return out


def weights(model):
    """Whole local parameters by name, in fp32."""
    found = {}
    for name, param in model.gathered_parameters():
        tensor = memory.empty(param.shape)
        ops.copy_cast_(tensor, param)
        found[name] = memory.as_numpy(tensor).copy()
    return found


def full_weights(model):
    """Unsharded parameters by name."""
    group = parallel_state.get_tensor_model_parallel_group()
    shards = {name: shard_of(param) for name, param in named_parameters(model.module)}
    parts = comm.all_gather_object(weights(model), group=group)
    return {name: shards[name].join([part[name] for part in parts]) for name in shards}
