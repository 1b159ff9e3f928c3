"""What a converter must know about a model, from and to each format's own description of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mindspeed_ms.formats import names
from mindspeed_ms.formats.catalog import Catalog

DEFAULT_STRETCH = 8.0
"""``rope_scaling_factor`` where none is given."""


@dataclass(kw_only=True, slots=True)
class ModelFacts:
    """Sizes and kinds of a GPT model, under Megatron's names."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    padded_vocab_size: int
    vocab_size: int | None = None
    """Tokens in use; None: unknown, all rows are kept."""
    max_position_embeddings: int = 0
    seq_length: int = 0
    position_embedding_type: str = "learned_absolute"
    rotary_base: float = 10000.0
    rotary_percent: float = 1.0
    rotary_interleaved: bool = False
    rope_scaling_factor: float | None = None
    """How far rotations are stretched as in Llama 3.1; None: not at all."""
    normalization: str = "LayerNorm"
    norm_epsilon: float = 1e-5
    swiglu: bool = False
    activation: str = "gelu"
    """gelu (erf), fast_gelu (tanh), swiglu or squared_relu."""
    add_bias_linear: bool = True
    add_qkv_bias: bool = True
    out_proj_has_bias: bool = True
    untie_embeddings_and_output_weights: bool = False
    qk_layernorm: bool = False
    num_experts: int = 0
    """0: a dense model."""
    moe_ffn_hidden_size: int | None = None
    moe_router_topk: int = 2
    moe_shared_expert_intermediate_size: int | None = None
    window_size: int | None = None
    params_dtype: str = "F32"

    @property
    def is_tied(self) -> bool:
        """Whether the head uses the embedding's table."""
        return not self.untie_embeddings_and_output_weights


def facts_of(catalog: Catalog) -> ModelFacts:
    """Facts of a model, from whatever description its checkpoint holds.

    Raises:
        ValueError: there is none.
    """
    common = catalog.common
    if "config" in common:
        found = _from_own(common["config"])
    elif "num_layers" in common.get("megatron_args", {}):
        found = _from_megatron(common["megatron_args"])
    elif "facts" in common:
        known = {item.name for item in fields(ModelFacts)}
        found = ModelFacts(**{k: v for k, v in common["facts"].items() if k in known})
    else:
        raise ValueError(
            f"{catalog.source} does not describe its model; name a file that does with "
            "--model-config (a configuration in YAML, or Hugging Face's config.json)"
        )
    found.vocab_size = found.vocab_size or common.get("vocab_size")
    return _completed(found, catalog)


def _completed(facts: ModelFacts, catalog: Catalog) -> ModelFacts:
    """Correct the facts by what the tensors show."""
    table = catalog.tensors.get(names.EMBEDDING)
    if table is not None:
        facts.padded_vocab_size = table.shape[0]
        facts.params_dtype = table.dtype
    facts.untie_embeddings_and_output_weights = names.HEAD in catalog.tensors
    stem = "language_model.encoder.layers."
    facts.add_qkv_bias = any(n.endswith("attention.qkv_proj.bias") for n in catalog.tensors)
    facts.out_proj_has_bias = any(n.endswith("attention.out_proj.bias") for n in catalog.tensors)
    mlp_bias = any(n.startswith(stem) and n.endswith("mapping.bias") for n in catalog.tensors)
    facts.add_bias_linear = mlp_bias
    return facts


def _from_own(config: Mapping[str, Any]) -> ModelFacts:
    model = config["model_config"]
    moe = config.get("moe_config") or {}
    act = model.get("hidden_act") or "gelu"
    gated = act in ("swiglu", "fused_swiglu")
    heads, hidden = model["num_attention_heads"], model["hidden_size"]
    is_grouped = model.get("group_query_attention")
    num_experts = moe.get("num_experts") or 1
    position = model.get("position_embedding_type") or "absolute"
    return ModelFacts(
        num_layers=model["num_layers"],
        hidden_size=hidden,
        ffn_hidden_size=model.get("ffn_hidden_size") or 4 * hidden,
        num_attention_heads=heads,
        num_query_groups=model["num_query_groups"] if is_grouped else heads,
        kv_channels=model.get("kv_channels") or hidden // heads,
        padded_vocab_size=model["vocab_size"],
        max_position_embeddings=model.get("max_position_embeddings") or model["seq_length"],
        seq_length=model["seq_length"],
        position_embedding_type="learned_absolute" if position == "absolute" else position,
        rotary_base=float(model.get("rotary_base") or 10000.0),
        rotary_percent=float(model.get("rotary_percent") or 1.0),
        rotary_interleaved=bool(model.get("rotary_interleaved")),
        rope_scaling_factor=_stretch(model),
        normalization=(model.get("normalization") or "LayerNorm").removeprefix("Fused"),
        norm_epsilon=float(model.get("norm_epsilon") or 1e-5),
        swiglu=gated,
        activation="swiglu" if gated else act,
        qk_layernorm=bool(model.get("qk_layernorm")),
        num_experts=num_experts if num_experts > 1 else 0,
        moe_ffn_hidden_size=moe.get("moe_ffn_hidden_size"),
        moe_router_topk=moe.get("moe_router_topk") or 2,
        moe_shared_expert_intermediate_size=moe.get("moe_shared_expert_intermediate_size"),
    )


def _from_megatron(args: Mapping[str, Any]) -> ModelFacts:
    def get(name: str, default: Any) -> Any:
        value = args.get(name)
        return default if value is None else value

    heads, hidden = int(args["num_attention_heads"]), int(args["hidden_size"])
    gated = bool(get("swiglu", False))
    activation = "swiglu" if gated else "gelu"
    if get("squared_relu", False):
        activation = "squared_relu"
    elif get("openai_gelu", False) or (get("bias_gelu_fusion", False) and not gated):
        activation = "fast_gelu"
    position = get("position_embedding_type", "learned_absolute")
    is_rotary = position == "rope" or get("use_rotary_position_embeddings", False)
    return ModelFacts(
        num_layers=int(args["num_layers"]),
        hidden_size=hidden,
        ffn_hidden_size=int(get("ffn_hidden_size", 4 * hidden)),
        num_attention_heads=heads,
        num_query_groups=(
            int(get("num_query_groups", heads)) if get("group_query_attention", False) else heads
        ),
        kv_channels=int(get("kv_channels", hidden // heads)),
        padded_vocab_size=int(get("padded_vocab_size", 0)),
        vocab_size=args.get("vocab_size"),
        max_position_embeddings=int(get("max_position_embeddings", 0)),
        seq_length=int(get("seq_length", get("max_position_embeddings", 0))),
        position_embedding_type="rope" if is_rotary else position,
        rotary_base=float(get("rotary_base", 10000.0)),
        rotary_percent=float(get("rotary_percent", 1.0)),
        rotary_interleaved=bool(get("rotary_interleaved", False)),
        rope_scaling_factor=_stretch(args),
        normalization=get("normalization", "LayerNorm"),
        norm_epsilon=float(get("norm_epsilon", get("layernorm_epsilon", 1e-5))),
        swiglu=gated,
        activation=activation,
        qk_layernorm=bool(get("qk_layernorm", False)),
        num_experts=int(get("num_experts", 0) or 0),
        moe_ffn_hidden_size=args.get("moe_ffn_hidden_size"),
        moe_router_topk=int(get("moe_router_topk", 2)),
        moe_shared_expert_intermediate_size=args.get("moe_shared_expert_intermediate_size"),
    )


def _stretch(options: Mapping[str, Any]) -> float | None:
    """The factor, if rotations are stretched; the option is called alike here and in Megatron."""
    if not options.get("use_rope_scaling"):
        return None
    return float(options.get("rope_scaling_factor") or DEFAULT_STRETCH)


def model_sections(facts: ModelFacts) -> dict[str, dict[str, Any]]:
    """The sections of this project's configuration that describe the model."""
    model: dict[str, Any] = {
        "vocab_size": facts.padded_vocab_size,
        "num_layers": facts.num_layers,
        "num_attention_heads": facts.num_attention_heads,
        "hidden_size": facts.hidden_size,
        "seq_length": facts.seq_length or facts.max_position_embeddings,
        "ffn_hidden_size": facts.ffn_hidden_size,
        "max_position_embeddings": facts.max_position_embeddings or facts.seq_length,
        "kv_channels": facts.kv_channels,
        "group_query_attention": facts.num_query_groups != facts.num_attention_heads,
        "num_query_groups": facts.num_query_groups,
        "position_embedding_type": facts.position_embedding_type,
        "rotary_base": facts.rotary_base,
        "rotary_percent": facts.rotary_percent,
        "rotary_interleaved": facts.rotary_interleaved,
        "use_rope_scaling": facts.rope_scaling_factor is not None,
        "rope_scaling_factor": facts.rope_scaling_factor or DEFAULT_STRETCH,
        "qkv_has_bias": facts.add_qkv_bias,
        "out_proj_has_bias": facts.out_proj_has_bias,
        "mlp_has_bias": facts.add_bias_linear,
        "qk_layernorm": facts.qk_layernorm,
        "hidden_act": facts.activation,
        "normalization": facts.normalization,
        "norm_epsilon": facts.norm_epsilon,
        "untie_embeddings_and_output_weights": facts.untie_embeddings_and_output_weights,
    }
    sections = {"model_config": model}
    if facts.num_experts:
        sections["moe_config"] = {
            "num_experts": facts.num_experts,
            "moe_router_topk": facts.moe_router_topk,
            "moe_ffn_hidden_size": facts.moe_ffn_hidden_size,
            "moe_shared_expert_intermediate_size": facts.moe_shared_expert_intermediate_size,
        }
    return sections


def megatron_arguments(facts: ModelFacts) -> dict[str, Any]:
    """Megatron's arguments that describe the model."""
    is_rotary = facts.position_embedding_type == "rope"
    arguments = {
        key: value
        for key, value in asdict(facts).items()
        if key not in ("activation", "params_dtype", "window_size", "out_proj_has_bias")
    }
    return {
        **arguments,
        "encoder_num_layers": facts.num_layers,
        "encoder_seq_length": facts.seq_length,
        "group_query_attention": facts.num_query_groups != facts.num_attention_heads,
        "use_rotary_position_embeddings": is_rotary,
        "use_rope_scaling": facts.rope_scaling_factor is not None,
        "rope_scaling_factor": facts.rope_scaling_factor or DEFAULT_STRETCH,
        "add_position_embedding": facts.position_embedding_type != "none",
        "layernorm_epsilon": facts.norm_epsilon,
        "squared_relu": facts.activation == "squared_relu",
        "openai_gelu": facts.activation == "fast_gelu",
        "num_experts": facts.num_experts or None,
        "vocab_file": None,
        "make_vocab_size_divisible_by": 128,
        "data_parallel_random_init": False,
        "tokenizer_type": None,
        "apply_query_key_layer_scaling": False,
    }
