"""Floating point operations of a training step."""

from __future__ import annotations

from mindspeed_ms.core.config import TransformerConfig


def flops_per_step(config: TransformerConfig, batch_size: int) -> float:
    """Operations of forward and backward over one global batch.

    Source: Megatron-LM core 0.8 ``num_floating_point_operations`` (dense models): 12 B s L h^2
    [(1 + groups/heads + s/h) * channels*heads/h + f/h * (1.5 if gated) + V/(2 L h)].
    """
    hidden, layers, sequence = config.hidden_size, config.num_layers, config.seq_length
    heads = config.num_attention_heads
    groups = config.num_query_groups if config.group_query_attention else heads
    attention = (1 + groups / heads + sequence / hidden) * config.kv_channels * heads / hidden
    feed_forward = config.ffn_hidden_size / hidden * (1.5 if config.gated_linear_unit else 1.0)
    head = config.vocab_size / (2 * layers * hidden)
    return 12.0 * batch_size * sequence * layers * hidden**2 * (attention + feed_forward + head)


def tflops_per_rank(
    config: TransformerConfig, batch_size: int, seconds: float, world_size: int
) -> float:
    """Tera floating point operations per second and rank."""
    return flops_per_step(config, batch_size) / (seconds * 1.0e12 * world_size)
