"""``--use-checkpoint-args``: the model's sizes from the checkpoint that is loaded."""

from __future__ import annotations

from pathlib import Path

from mindspeed_ms.formats.facts import ModelFacts, facts_of
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint

_SWITCHES = {"swiglu": "--swiglu", "squared_relu": "--squared-relu", "fast_gelu": "--openai-gelu"}
"""Activation -> flag."""


def flags_from_checkpoint(load: str | None, step: int | None) -> tuple[list[str], list[str]]:
    """Flags that a checkpoint stands for: those the command line may change, and those it may not.

    Args:
        load: folder of the checkpoint, ``--load``.
        step: iteration, None for the newest.

    Raises:
        ValueError: nothing is loaded, or what is loaded does not describe its model.

    Source: Megatron-LM ``load_args_from_checkpoint`` (which arguments are taken).
    """
    if not load:
        raise ValueError("--use-checkpoint-args needs --load; name the checkpoint's folder")
    found = find_checkpoint(Path(load), step)
    if found is None:
        raise ValueError(f"--use-checkpoint-args: {load} holds no checkpoint; correct --load")
    facts = facts_of(open_checkpoint(found))
    return _preferred(facts), _required(facts)


def _preferred(facts: ModelFacts) -> list[str]:
    sizes = {
        "--seq-length": facts.seq_length,
        "--max-position-embeddings": facts.max_position_embeddings,
        "--padded-vocab-size": facts.padded_vocab_size,
    }
    return [word for flag, value in sizes.items() if value for word in (flag, str(value))]


def _required(facts: ModelFacts) -> list[str]:
    values = {
        "--num-layers": facts.num_layers,
        "--hidden-size": facts.hidden_size,
        "--ffn-hidden-size": facts.ffn_hidden_size,
        "--num-attention-heads": facts.num_attention_heads,
        "--kv-channels": facts.kv_channels,
        "--position-embedding-type": facts.position_embedding_type,
        "--normalization": facts.normalization,
        "--norm-epsilon": facts.norm_epsilon,
        "--rotary-base": int(facts.rotary_base),
        "--rotary-percent": facts.rotary_percent,
    }
    words = [word for flag, value in values.items() for word in (flag, str(value))]
    if facts.num_query_groups != facts.num_attention_heads:
        words += ["--group-query-attention", "--num-query-groups", str(facts.num_query_groups)]
    if facts.activation in _SWITCHES:
        words.append(_SWITCHES[facts.activation])
    if not facts.add_bias_linear:
        words.append("--disable-bias-linear")
        words += ["--add-qkv-bias"] if facts.add_qkv_bias else []
    if not facts.is_tied:
        words.append("--untie-embeddings-and-output-weights")
    if facts.rotary_interleaved:
        words.append("--rotary-interleaved")
    if facts.rope_scaling_factor is not None:
        words += ["--use-rope-scaling", "--rope-scaling-factor", str(facts.rope_scaling_factor)]
    if facts.qk_layernorm:
        words.append("--qk-layernorm")
    if facts.num_experts:
        words += ["--num-experts", str(facts.num_experts)]
        words += ["--moe-router-topk", str(facts.moe_router_topk)]
        if facts.moe_ffn_hidden_size:
            words += ["--moe-ffn-hidden-size", str(facts.moe_ffn_hidden_size)]
    return words
