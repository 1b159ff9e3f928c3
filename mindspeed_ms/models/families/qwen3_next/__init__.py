# SPDX-License-Identifier: Apache-2.0
"""Qwen3-Next: linear attention with a gated delta rule in most layers, gated heads elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.attention import AttentionSpec
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.expert_rules import BALANCE, Normed, SparseSteps, experts
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place, Places, query_rows
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Fields, Heads, Key, value_of
from mindspeed_ms.models.families.window import FULL
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.models.linear_attention import GatedDeltaSpec

LINEAR = "linear_attention"


@dataclass(frozen=True, slots=True)
class LinearLayers:
    """Layers with linear attention: those of ``layer_types``, else all but every n-th."""

    every: int = 4
    keys: frozenset[str] = frozenset({"layer_types", "full_attention_interval"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The layers.

        Raises:
            ValueError: a kind that is not known, or a list of another length.
        """
        number = value_of(theirs, "num_hidden_layers")
        every = value_of(theirs, "full_attention_interval", self.every)
        usual = [LINEAR if (layer + 1) % every else FULL for layer in range(number)]
        types = theirs.get("layer_types") or usual
        if set(types) - {LINEAR, FULL} or len(types) != number:
            raise ValueError(
                f"config.json has layer_types {list(types)}; it is {LINEAR} or {FULL} for each of "
                f"the {number} layers"
            )
        return {"model_config.linear_attention_freq": tuple(int(kind == LINEAR) for kind in types)}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The list."""
        model = config.model_config
        kinds = {True: LINEAR, False: FULL}
        return {"layer_types": [kinds[model.is_linear(i)] for i in range(model.num_layers)]}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoder(Decoder):
    """Rows of a head of queries precede those of its gate; kinds of linear rows lie by key head."""

    def _attention(
        self, places: Places, theirs: str, ours: str, layer: LayerSpec
    ) -> Iterator[Place]:
        attention = layer.attention
        if isinstance(attention, GatedDeltaSpec):
            linear = theirs.removesuffix("self_attn") + "linear_attn"
            yield from _linear(places, linear, ours, attention)
            return
        assert isinstance(attention, AttentionSpec), "no layer has narrow vectors"
        rows = {kind: query_rows(attention, kind) for kind in "qkv"}
        width, size = attention.head_dim, attention.row_blocks[0]
        rows["q"] = [
            (start + place + offset, width)
            for start, _ in rows["q"]
            for place in range(0, size, width)
            for offset in (0, size)
        ]
        for kind, runs in rows.items():
            yield from places.linear(f"{theirs}.{kind}_proj", f"{ours}.qkv_proj", runs)
        yield from places.linear(f"{theirs}.o_proj", f"{ours}.out_proj")


def _linear(places: Places, theirs: str, ours: str, spec: GatedDeltaSpec) -> Iterator[Place]:
    """Linear attention: for each key head its query, key, values and gates; rates and decays."""
    heads = spec.num_key_heads
    keys, values = spec.key_dim, spec.num_value_heads // heads
    widths = (keys, keys, values * spec.value_dim, values * spec.value_dim, values, values)
    starts = [heads * sum(widths[:kind]) for kind in range(len(widths))]

    def rows(kinds: range) -> list[tuple[int, int]]:
        pairs = [(starts[kind], widths[kind]) for kind in kinds]
        return [(start + head * width, width) for head in range(heads) for start, width in pairs]

    yield from places.linear(f"{theirs}.in_proj_qkvz", f"{ours}.in_proj", rows(range(4)))
    yield from places.linear(f"{theirs}.in_proj_ba", f"{ours}.in_proj", rows(range(4, 6)))
    for name in ("conv1d.weight", "dt_bias", "A_log"):
        yield from places.whole(f"{theirs}.{name}", f"{ours}.{name}")
    yield from places.norm(f"{theirs}.norm", f"{ours}.out_norm")
    yield from places.linear(f"{theirs}.out_proj", f"{ours}.out_proj")


FAMILY = Family(
    name="qwen3_next",
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    fixed={
        **llama.FIXED,
        "model_config.qk_layernorm": True,
        "model_config.layernorm_zero_centered_gamma": True,
        "model_config.linear_norm_has_plain_factor": True,
        "model_config.attention_output_gate": True,
        "model_config.experimental_attention_variant": "gated_delta_net",
        "moe_config.moe_shared_expert_gate": True,
    },
    rules=llama.rules(
        llama.ATTENTION_BIAS,
        *experts("num_experts"),
        Key(
            "shared_expert_intermediate_size",
            "moe_config.moe_shared_expert_intermediate_size",
            512,
        ),
        Normed(default=True),
        BALANCE,
        SparseSteps(),
        LinearLayers(),
        *(
            Key(f"linear_{name}", f"model_config.linear_{name}", default)
            for name, default in (
                ("conv_kernel_dim", 4),
                ("key_head_dim", 128),
                ("value_head_dim", 128),
                ("num_key_heads", 16),
                ("num_value_heads", 32),
            )
        ),
        heads=Heads(default_groups=2, default_width=256),
        rope=Rope(share=0.25),
    ),
    places=_Decoder(shared="shared_expert"),
    neutral=frozenset({"output_router_logits"}),
    presets={
        "qwen3_next_80b_a3b": {
            "model_type": "qwen3_next",
            "vocab_size": 151936,
            "num_hidden_layers": 48,
            "hidden_size": 2048,
            "intermediate_size": 5120,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "norm_topk_prob": True,
            "partial_rotary_factor": 0.25,
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000000.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        }
    },
)
