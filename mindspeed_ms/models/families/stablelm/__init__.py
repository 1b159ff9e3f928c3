# SPDX-License-Identifier: Apache-2.0
"""StableLM: Llama with layer norms, a part of each head rotated; some with blocks side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mindspeed_ms.models.attention import AttentionSpec
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place, Places
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads, Key, norms_of_heads
from mindspeed_ms.models.layer import LayerSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoder(Decoder):
    """Each head's norm is a tensor."""

    def norms_of_heads(
        self, places: Places, theirs: str, ours: str, layer: LayerSpec
    ) -> Iterator[Place]:
        """Norms of queries and keys of a layer."""
        attention = layer.attention
        assert isinstance(attention, AttentionSpec), "heads have one width"
        counts, width = (attention.num_heads, attention.num_groups), attention.head_dim
        for word, count in zip("qk", counts, strict=True):
            own = f"{ours}.attention.{word}_layernorm.gamma"
            for head in range(count):
                name = f"{theirs}.self_attn.{word}_layernorm.norms.{head}.weight"
                yield from places.rows(name, own, [(head * width, width)])


FAMILY = Family(
    name="stablelm",
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    fixed={**llama.FIXED, "model_config.normalization": "LayerNorm"},
    rules=llama.rules(
        Biases("use_qkv_bias", ("model_config.qkv_has_bias",)),
        Biases(
            "use_parallel_residual",
            ("model_config.use_parallel_residual", "model_config.shares_input_norm"),
        ),
        norms_of_heads("qk_layernorm"),
        Key("hidden_dropout", "model_config.hidden_dropout_rate", 0.0, float),
        heads=Heads(width=None, default_groups=32),
        rope=Rope(share=0.25),
        epsilon=1e-5,
        epsilon_key="layer_norm_eps",
    ),
    places=_Decoder(),
    presets={
        "stablelm2_1.6b": {
            "model_type": "stablelm",
            "vocab_size": 100352,
            "num_hidden_layers": 24,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "use_qkv_bias": True,
            "max_position_embeddings": 4096,
            "partial_rotary_factor": 0.25,
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": 100257,
            "eos_token_id": 100257,
        }
    },
)
