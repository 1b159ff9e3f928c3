# SPDX-License-Identifier: Apache-2.0
"""Whole training steps on a kernel set: what layers, buffers and the optimizer hand to it."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import ops_reference as ref

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.config import DatasetConfig, MoEConfig, OptimizerConfig, TransformerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.distributed import finalize_model_grads
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
)
from mindspeed_ms.core.optimizer import get_megatron_optimizer
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.engine.parallel_setup import set_seed
from mindspeed_ms.legacy.model import GPTModel

BATCH, SEQ, VOCAB, EOD = 2, 16, 32, 3

LLAMA = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "hidden_act": "swiglu",
    "qkv_has_bias": False,
    "out_proj_has_bias": False,
    "mlp_has_bias": False,
    "group_query_attention": True,
    "num_query_groups": 2,
    "untie_embeddings_and_output_weights": True,
}
RECOMPUTED = {
    "use_sandwich_norm": True,
    "hidden_dropout_rate": 0.1,
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}
STYLES = {
    "gpt2": {
        "hidden_act": "gelu",
        "add_bias_linear": True,
        "attention_dropout_rate": 0.1,
        "hidden_dropout_rate": 0.1,
    },
    "llama": LLAMA,
    "experts": {
        **LLAMA,
        "moe_config": MoEConfig(
            num_experts=4,
            moe_router_load_balancing_type="aux_loss",
            moe_aux_loss_coeff=0.01,
            moe_z_loss_coeff=0.001,
        ),
    },
    "sandwich recomputed": {**LLAMA, **RECOMPUTED},
}


def _model(style, dtype):
    config = TransformerConfig(
        vocab_size=VOCAB,
        num_layers=2,
        num_attention_heads=4,
        hidden_size=64,
        ffn_hidden_size=72,
        seq_length=SEQ,
        params_dtype=dtype,
        compute_dtype=dtype,
        embedding_init_dtype=dtype,
        init_method_std=0.1,
        dataset_config=DatasetConfig(batch_size=BATCH),
        **STYLES[style],
    )
    net = GPTModel(config, eod=None if style == "gpt2" else EOD)
    net.set_train(True)
    return DistributedDataParallel(DistributedDataParallelConfig(), net)


def _loss(model, random):
    ids = random.randint(0, VOCAB, (BATCH, SEQ + 1)).astype(np.int32)
    return model(
        tokens=memory.from_numpy(np.ascontiguousarray(ids[:, :-1])),
        position_ids=memory.from_numpy(np.tile(np.arange(SEQ, dtype=np.int32), (BATCH, 1))),
        attention_mask=None,
        labels=memory.from_numpy(np.ascontiguousarray(ids[:, 1:])),
        loss_mask=memory.from_numpy((random.rand(BATCH, SEQ) < 0.9).astype(np.float32)),
    )


def train(style, dtype, random, steps=2):
    """Losses and gradient norms of some steps of two micro-batches; all gradients of the first."""
    comm.init_process_group()
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel()
    set_seed(1234)
    autograd.enable()
    model = _model(style, dtype)
    settings = OptimizerConfig(learning_rate=0.01, weight_decay=0.1, clip_grad=1.0)
    optimizer = get_megatron_optimizer(settings, [model], True)
    results, losses, norms = {}, [], []
    for step in range(steps):
        model.zero_grad_buffer()
        for last in (False, True):
            loss = _loss(model, random)
            losses.append(float(loss.asnumpy()))
            if last:
                autograd.backward(loss, ms.Tensor(0.5, ms.float32))
            else:
                with model.no_sync():
                    autograd.backward(loss, ms.Tensor(0.5, ms.float32))
        finalize_model_grads([model])
        if step == 0:
            for name, param in named_parameters(model.module):
                results[name] = (ref.values(param.main_grad), str(param.main_grad.dtype))
        optimizer.set_schedule(0.01, 0.1, None)
        norms.append(optimizer.step().grad_norm)
    parallel_state.destroy_model_parallel()
    return {**results, "loss": (np.array(losses), "host"), "norm": (np.array(norms), "host")}


def run(kernels, style, dtype, random):
    """``train`` on a kernel set."""
    previous = ops.selected()
    ops.select(kernels.__name__.rpartition(".")[2])
    try:
        return train(style, dtype, random)
    finally:
        ops.select(previous)
