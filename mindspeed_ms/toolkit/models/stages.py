# SPDX-License-Identifier: Apache-2.0
"""A forward pass through all pipeline stages, without a gradient between them."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.toolkit.models.batches import Batch


def forward(
    chunks: Sequence[GPTModel],
    config: AllConfig,
    batch: Batch,
    labels: Tensor | None = None,
    loss_mask: Tensor | None = None,
) -> Tensor:
    """Logits [b, s, v/p], or the loss, on every rank.

    Args:
        chunks: of this rank.
        config: the engine's configuration.
        batch: tokens, positions, mask.
        labels: [b, s].
        loss_mask: [b, s].

    Raises:
        ValueError: virtual stages, which only training uses.

    Parallelism: collective over the pipeline group.
    """
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    if len(chunks) > 1:
        raise ValueError(
            "a model with virtual pipeline stages cannot be called; build it without them"
        )
    (network,) = chunks
    inputs = (batch.tokens, batch.position_ids, batch.mask, loss_mask)
    if stages == 1:
        return network(*inputs, labels=labels)
    group = parallel_state.get_pipeline_model_parallel_group()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    if stage > 0:
        hidden = memory.empty(_hidden_shape(batch, config), _stream_type(config))
        comm.irecv(hidden, stage - 1, group).wait()
        network.set_input_tensor(hidden)
    output = network(*inputs, labels=labels)
    if stage < stages - 1:
        comm.isend(memory.contiguous(output), stage + 1, group).wait()
        output = memory.empty(_result_shape(batch, config, labels), _result_type(config, labels))
    result = memory.contiguous(output)
    comm.broadcast(result, stages - 1, group)
    return result


def _hidden_shape(batch: Batch, config: AllConfig) -> tuple[int, ...]:
    rows, length = batch.tokens.shape
    ranks = config.parallel_config.tensor_model_parallel_size
    if config.parallel_config.sequence_parallel:
        length //= ranks
    return (length, rows, config.model_config.hidden_size)


def _stream_type(config: AllConfig) -> mstype.Type:
    return memory.dtype_of(config.model_config.residual_dtype)


def _result_shape(batch: Batch, config: AllConfig, labels: Tensor | None) -> tuple[int, ...]:
    if labels is not None:
        return ()
    ranks = config.parallel_config.tensor_model_parallel_size
    return (*batch.tokens.shape, config.model_config.vocab_size // ranks)


def _result_type(config: AllConfig, labels: Tensor | None) -> mstype.Type:
    if labels is not None:
        return mstype.float32
    return memory.dtype_of(config.model_config.compute_dtype)
