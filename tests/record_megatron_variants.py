# SPDX-License-Identifier: Apache-2.0
"""Layers of Megatron-core that ``record_megatron_core.py`` has to put together itself.

Megatron builds them from layers of Transformer Engine and Flash Linear Attention; local layers and
a formula stand in for these.
"""

import copy
import json
import types

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core.fusions.fused_softmax import FusedScaleMaskSoftmax
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.optimizer.qk_clip import clip_qk
from megatron.core.ssm import gated_delta_net
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.experimental_attention_variant import dsa
from megatron.core.transformer.moe import moe_layer
from megatron.core.transformer.spec_utils import ModuleSpec

DELTA = {
    "experimental_attention_variant": "gated_delta_net",
    "linear_attention_freq": 2,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "deterministic_mode": True,
}
DELTA_FLAGS = (
    "--position-embedding-type rope --swiglu --ffn-hidden-size 48 --group-query-attention "
    "--num-query-groups 2 --experimental-attention-variant gated_delta_net "
    "--linear-attention-freq 2 --linear-conv-kernel-dim 4 --linear-key-head-dim 8 "
    "--linear-value-head-dim 12 --linear-num-key-heads 2 --linear-num-value-heads 4"
)


def note_scores():
    """Local attention notes its largest scores as that of Transformer Engine does."""
    plain = FusedScaleMaskSoftmax.forward

    def noting(self, scores, mask, *args):
        seen = scores if mask is None else scores.masked_fill(mask, -torch.inf)
        tops = seen.detach().amax((0, 2, 3))
        noted = getattr(self, "tops", None)
        self.tops = tops if noted is None else torch.maximum(noted, tops)
        return plain(self, scores, mask, *args)

    FusedScaleMaskSoftmax.forward = noting
    made = DotProductAttention.__init__

    def of_any_width(self, *args, k_channels=None, v_channels=None, **more):
        made(self, *args, **more)  # it takes the widths from the heads themselves

    DotProductAttention.__init__ = of_any_width


def clip(model, _):
    """Megatron's own, on what was noted; returns the largest score."""
    for layer in model.decoder.layers:
        core = layer.self_attention.core_attention
        core.current_max_attn_logits = core.scale_mask_softmax.tops
        core.scale_mask_softmax.tops = None
    chunk = types.SimpleNamespace(module=types.SimpleNamespace(module=model))
    return clip_qk([chunk])


CLIP = {"qk_clip": True, "qk_clip_threshold": 0.2, "qk_clip_alpha": 0.3, "after": clip}
CLIP_FLAGS = "--swiglu --ffn-hidden-size 48 --qk-clip --qk-clip-threshold 0.2 --qk-clip-alpha 0.3"
LATENT = {
    "multi_latent_attention": True,
    "num_query_groups": None,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 4,
    "v_head_dim": 8,
    "qk_layernorm": True,
    "rope_type": "rope",
    "rotary_base": 10000,
}
LATENT_FLAGS = (
    "--multi-latent-attention --q-lora-rank 12 --kv-lora-rank 8 --qk-head-dim 8 "
    "--qk-pos-emb-head-dim 4 --v-head-dim 8 --qk-layernorm --rope-type rope"
)
SPARSE = LATENT | {
    "experimental_attention_variant": "dsa",
    "dsa_indexer_n_heads": 16,
    "dsa_indexer_head_dim": 8,
    "dsa_indexer_topk": 12,
    "dsa_indexer_loss_coeff": 20.0,
}
SPARSE_FLAGS = (
    f"--position-embedding-type rope --swiglu --ffn-hidden-size 48 {LATENT_FLAGS} "
    "--experimental-attention-variant dsa --dsa-indexer-n-heads 16 --dsa-indexer-head-dim 8 "
    "--dsa-indexer-topk 12 --dsa-indexer-loss-coeff 20"
)
BLOCKS = [
    {"attention": {"num_query_groups": 4}, "mlp": {"ffn_hidden_size": 40}},
    {
        "attention": {"n_heads_in_group": None, "no_op": True},
        "ffn": {"ffn_mult": 2.5, "no_op": False},
    },
    {
        "attention": {"n_heads_in_group": 2},
        "ffn": {"ffn_mult": None, "replace_with_linear": True},
    },
    {
        "attention": {"num_query_groups": None, "replace_with_linear": True},
        "mlp": {"ffn_hidden_size": None, "no_op": True},
    },
]
BLOCKS_TEXT = json.dumps({"block_configs": BLOCKS}, separators=(",", ":"))
CASES = {
    "heterogeneous_layers": (
        "--position-embedding-type rope --swiglu --ffn-hidden-size 48 --group-query-attention "
        "--num-query-groups 2 --num-layers 4 "
        f"--heterogeneous-layers-config-encoded-json {BLOCKS_TEXT}",
        {"num_layers": 4, "heterogeneous_layers_config_encoded_json": BLOCKS_TEXT},
    ),
    "sparse_attention": (SPARSE_FLAGS, SPARSE),
    "deepseek_v32": (
        f"{SPARSE_FLAGS} --dsa-indexer-use-sparse-loss --num-experts 8 --moe-router-topk 2 "
        "--moe-ffn-hidden-size 24 --moe-token-dispatcher-type alltoall "
        "--moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 1e-1 "
        "--moe-router-score-function sigmoid --moe-shared-expert-intermediate-size 24 "
        "--moe-layer-freq [0,1]",
        {
            **SPARSE,
            "dsa_indexer_use_sparse_loss": True,
            "num_moe_experts": 8,
            "moe_router_topk": 2,
            "moe_ffn_hidden_size": 24,
            "moe_router_load_balancing_type": "seq_aux_loss",
            "moe_aux_loss_coeff": 1e-1,
            "moe_router_score_function": "sigmoid",
            "moe_shared_expert_intermediate_size": 24,
            "moe_layer_freq": [0, 1],
        },
    ),
    "qk_clip": (
        f"--position-embedding-type rope --group-query-attention --num-query-groups 2 {CLIP_FLAGS}",
        CLIP,
    ),
    "qk_clip_latent": (
        f"--position-embedding-type rope {CLIP_FLAGS} {LATENT_FLAGS}",
        CLIP | LATENT,
    ),
    "gated_delta_net": (DELTA_FLAGS, DELTA),
    "qwen3_next": (
        f"{DELTA_FLAGS} --attention-output-gate --qk-layernorm --apply-layernorm-1p "
        "--rotary-percent 0.5 --num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 24 "
        "--moe-token-dispatcher-type alltoall --moe-router-load-balancing-type global_aux_loss "
        "--moe-aux-loss-coeff 1e-1 --moe-shared-expert-intermediate-size 24 "
        "--moe-shared-expert-gate",
        {
            **DELTA,
            "attention_output_gate": True,
            "qk_layernorm": True,
            "layernorm_zero_centered_gamma": True,
            "rotary_percent": 0.5,
            "num_moe_experts": 8,
            "moe_router_topk": 2,
            "moe_ffn_hidden_size": 24,
            "moe_router_load_balancing_type": "global_aux_loss",
            "moe_aux_loss_coeff": 1e-1,
            "moe_shared_expert_intermediate_size": 24,
            "moe_shared_expert_gate": True,
        },
    ),
}


class WholeLinear(torch.nn.Module):
    """A layer that every rank holds in full; the rest of Transformer Engine's arguments is moot."""

    def __init__(self, inputs, outputs, *_, bias=False, **__):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs))
        self.bias = torch.nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias), None


class LayerNorm(torch.nn.LayerNorm):
    """Torch's, by the arguments of Megatron's builder."""

    def __init__(self, config=None, hidden_size=0, eps=1e-5, **_):
        super().__init__(hidden_size, eps)


class ZeroCenteredNorm(torch.nn.Module):
    """RMSNorm whose parameter is the factor minus 1."""

    def __init__(self, config=None, hidden_size=0, eps=1e-5, **_):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(hidden_size))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


def replace_packages():
    """What comes from packages that are not installed."""
    note_scores()
    moe_layer.HAVE_TE, moe_layer.TELinear = True, WholeLinear
    multi_latent_attention.TELinear = WholeLinear
    dsa.rotate_activation = lambda x: x  # it takes bf16, and leaves products as they are
    gated_delta_net.HAVE_FLA = True
    gated_delta_net.l2norm = lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def sparse_attention():
    """Megatron's, with local layers in its indexer."""
    indexer = ModuleSpec(
        module=dsa.DSAIndexer,
        submodules=dsa.DSAIndexerSubmodules(
            linear_wq_b=WholeLinear,
            linear_wk=WholeLinear,
            k_norm=LayerNorm,
            linear_weights_proj=WholeLinear,
        ),
    )
    return ModuleSpec(module=dsa.DSAttention, submodules=dsa.DSAttentionSubmodules(indexer=indexer))


def note_indexer_losses(result, micro_batches):
    """Those of each layer in a step, if there are indexers."""
    values = dsa.DSAIndexerLossLoggingHelper.tracker.pop("values", None)
    if values is not None:
        layers = (values / micro_batches).tolist()
        result.setdefault("layer_losses", {}).setdefault("indexer loss", []).append(layers)


def changed(spec, config):
    """The block with the kinds of layers that the configuration asks for."""
    backend = LocalSpecProvider()
    norm = backend.layer_norm(rms_norm=config.normalization == "RMSNorm", for_qk=False)
    if config.layernorm_zero_centered_gamma:
        norm = spec.layer_norm = ZeroCenteredNorm
    spec.layer_specs = [copy.deepcopy(layer) for layer in spec.layer_specs]  # they are one object
    for number, layer in enumerate(spec.layer_specs):
        if config.layernorm_zero_centered_gamma:
            layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = norm
            attention = layer.submodules.self_attention.submodules
            attention.q_layernorm = attention.k_layernorm = norm
        if config.experimental_attention_variant == "dsa":
            layer.submodules.self_attention.submodules.core_attention = sparse_attention()
        is_delta = config.experimental_attention_variant == "gated_delta_net"
        if is_delta and (number + 1) % config.linear_attention_freq:
            layer.submodules.self_attention = ModuleSpec(
                module=gated_delta_net.GatedDeltaNet,
                submodules=gated_delta_net.GatedDeltaNetSubmodules(
                    in_proj=backend.column_parallel_linear(),
                    out_norm=norm,
                    out_proj=backend.row_parallel_linear(),
                ),
            )
    return spec
