# SPDX-License-Identifier: Apache-2.0
"""InternLM 2: Llama whose queries, keys and values lie together by group of heads, as here.

``transformers`` has no class of its own for it; the folder's files say how it is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place, Places, gated_block
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads
from mindspeed_ms.models.feed_forward import MLPSpec
from mindspeed_ms.models.model import ModelSpec


def _places(spec: ModelSpec) -> Iterator[Place]:
    places = Places(spec)
    yield from places.whole("model.tok_embeddings.weight", "embedding.word_embeddings.weight")
    for number, layer in enumerate(spec.layers):
        if layer is None:
            continue
        theirs, ours = f"model.layers.{number}", f"encoder.layers.{number}"
        assert isinstance(layer.mlp, MLPSpec), "no layer has experts"
        yield from places.norm(f"{theirs}.attention_norm", f"{ours}.input_norm")
        yield from places.linear(f"{theirs}.attention.wqkv", f"{ours}.attention.qkv_proj")
        yield from places.linear(f"{theirs}.attention.wo", f"{ours}.attention.out_proj")
        yield from places.norm(f"{theirs}.ffn_norm", f"{ours}.post_attention_norm")
        block = (places, f"{theirs}.feed_forward", f"{ours}.mlp", layer.mlp)
        yield from gated_block(*block, ("w1", "w3", "w2"))
    yield from places.norm("model.norm", "encoder.final_norm")
    yield from places.whole("output.weight", "output_layer.weight")


def _internlm2(layers: int, hidden: int, inner: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "internlm2",
        "vocab_size": 92544,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "bias": False,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


FAMILY = Family(
    name="internlm2",
    model_type="internlm2",
    architecture="InternLM2ForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(
        Biases("bias", ("model_config.qkv_has_bias", "model_config.out_proj_has_bias"), True),
        heads=Heads(width=None),
        rope=Rope(),
    ),
    places=_places,
    neutral=frozenset({"pretraining_tp"}),
    presets={
        "internlm2_1.8b": _internlm2(24, 2048, 8192, 16, 8),
        "internlm2_7b": _internlm2(32, 4096, 14336, 32, 8),
        "internlm2_20b": _internlm2(48, 6144, 16384, 48, 8),
    },
)
