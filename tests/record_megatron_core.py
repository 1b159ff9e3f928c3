# SPDX-License-Identifier: Apache-2.0
"""Records short runs of Megatron-core in ``tests/data/megatron_core/layers.json``.

    python tests/record_megatron_core.py [NAME ...]

It runs where torch and ``megatron-core`` 0.16.1 are installed, on one rank on CPU: Megatron's own
GPTModel (local layers), DistributedDataParallel, optimizer and scheduler, with ``torch.cuda``
replaced by the CPU. Weights are drawn from the names of parameters and data are the first
micro-batches of ``golden``, as in ``tests/unit/core/test_megatron_layers.py``.
"""

import contextlib
import json
import os
import sys
import types
import zlib
from functools import partial
from pathlib import Path

import numpy as np

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # read when torch is imported
import torch
import torch.nn.functional as F  # noqa: N812

DATA = Path(__file__).parent / "data"
FILE = DATA / "megatron_core" / "layers.json"
STEPS, MICRO_BATCHES, SEQUENCE, VOCABULARY = 40, 4, 64, 512

COMMON = (
    "--transformer-impl local --use-cpu-initialization --distributed-backend gloo "
    "--no-persist-layer-norm --no-masked-softmax-fusion --no-bias-gelu-fusion "
    "--no-bias-swiglu-fusion --no-bias-dropout-fusion --no-rope-fusion "
    "--no-gradient-accumulation-fusion --attention-dropout 0 --hidden-dropout 0 --seq-length 64 "
    "--max-position-embeddings 64 --micro-batch-size 2 --global-batch-size 8 --train-iters 40 "
    "--adam-beta1 0.9 --adam-beta2 0.95 --adam-eps 1e-8 --seed 1234 --init-method-std 0.1 "
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --normalization RMSNorm "
    "--disable-bias-linear --untie-embeddings-and-output-weights --lr 3e-3 --min-lr 1e-4 "
    "--lr-decay-style cosine --lr-warmup-iters 2 --lr-decay-iters 40 --weight-decay 0.1 "
    "--clip-grad 1.0"
)
EXPERTS = {"num_moe_experts": 8, "moe_ffn_hidden_size": 24, "moe_router_topk": 2}
MOE = (
    "--num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 24 "
    "--moe-token-dispatcher-type alltoall"
)
AUX = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 1e-1}
GPT_OSS = (
    "--position-embedding-type rope --add-bias-linear --quick-geglu --glu-linear-offset 1.0 "
    f"--activation-func-clamp-value 1.5 {MOE} --moe-router-load-balancing-type none "
    "--softmax-type learnable --window-size 16,0 --window-attn-skip-freq 2 --num-query-groups 2 "
    "--group-query-attention --ffn-hidden-size 48"
)
GROUPS = "--group-query-attention --num-query-groups 2 --ffn-hidden-size 48 --swiglu"
ROPE = f"--position-embedding-type rope {GROUPS}"
YARN = {
    "yarn_rotary_scaling_factor": 4.0,
    "yarn_original_max_position_embeddings": 16,
    "yarn_beta_fast": 2.0,
    "yarn_beta_slow": 0.25,
    "yarn_mscale": 0.7,
    "yarn_mscale_all_dim": 0.0,
    "yarn_correction_range_round_to_int": False,
}
CASES = {
    "off_by_one": (f"{ROPE} --softmax-type off-by-one", {"softmax_type": "off-by-one"}),
    "learnable_sinks": (f"{ROPE} --softmax-type learnable", {"softmax_type": "learnable"}),
    "window": (f"{ROPE} --window-size 16,0", {"window_size": (16, 0)}),
    "window_skip": (
        f"{ROPE} --window-size 16,0 --window-attn-skip-freq 2",
        {"window_size": (16, 0), "window_attn_skip_freq": 2},
    ),
    "no_rope": (f"{ROPE} --no-rope-freq 2", {"no_rope_freq": 2}),
    "gpt_oss": (
        GPT_OSS,
        EXPERTS
        | {
            "add_bias_linear": True,
            "activation_func": "quick_gelu",
            "glu_linear_offset": 1.0,
            "activation_func_clamp_value": 1.5,
            "softmax_type": "learnable",
            "window_size": (16, 0),
            "window_attn_skip_freq": 2,
        },
    ),
    "yarn": (
        f"--position-embedding-type yarn {GROUPS} --rotary-scaling-factor 4 "
        "--yarn-original-max-position-embeddings 16 --yarn-beta-fast 2 --yarn-beta-slow 0.25 "
        "--mscale 0.7 --mscale-all-dim 0 --no-yarn-correction-range-round-to-int",
        {"position": "yarn", "yarn": YARN},
    ),
    "qk_l2_norm": (f"{ROPE} --qk-l2-norm", {"qk_l2_norm": True}),
    "attention_output_gate": (f"{ROPE} --attention-output-gate", {"attention_output_gate": True}),
    "attention_output_gate_norms": (
        f"{ROPE} --attention-output-gate --qk-layernorm",
        {"attention_output_gate": True, "qk_layernorm": True},
    ),
    "probs_on_input": (
        f"{ROPE} {MOE} --moe-router-topk 1 --moe-router-score-function sigmoid "
        "--moe-router-load-balancing-type none --moe-apply-probs-on-input",
        EXPERTS
        | {
            "moe_router_topk": 1,
            "moe_router_score_function": "sigmoid",
            "moe_apply_probs_on_input": True,
        },
    ),
    "latent_experts": (
        f"{ROPE} {MOE} --moe-latent-size 16 --moe-router-load-balancing-type aux_loss "
        "--moe-aux-loss-coeff 1e-1 --moe-shared-expert-intermediate-size 40",
        EXPERTS | AUX | {"moe_latent_size": 16, "moe_shared_expert_intermediate_size": 40},
    ),
    "bias_within_capacity": (
        f"{ROPE} {MOE} --num-experts 4 --moe-router-load-balancing-type none "
        "--moe-router-score-function sigmoid --moe-router-enable-expert-bias "
        "--moe-router-bias-update-rate 1e-1 --moe-expert-capacity-factor 1.1",
        EXPERTS
        | {
            "num_moe_experts": 4,  # with eight, tokens of equal scores meet at the limit
            "moe_router_score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "moe_router_bias_update_rate": 1e-1,
            "moe_expert_capacity_factor": 1.1,
        },
    ),
    "llama4": (
        f"{ROPE} {MOE} --moe-router-topk 1 --moe-router-score-function sigmoid "
        "--moe-router-load-balancing-type none --moe-apply-probs-on-input --qk-l2-norm "
        "--no-rope-freq 2 --moe-shared-expert-intermediate-size 24 --moe-layer-freq 2",
        EXPERTS
        | {
            "moe_router_topk": 1,
            "moe_router_score_function": "sigmoid",
            "moe_apply_probs_on_input": True,
            "qk_l2_norm": True,
            "no_rope_freq": 2,
            "moe_shared_expert_intermediate_size": 24,
            "moe_layer_freq": 2,
        },
    ),
}


def on_cpu(make, *args, **options):
    if options.get("device") is not None:
        options["device"] = "cpu"
    return make(*args, **options)


def replace_cuda():
    """What asks for a CUDA device gets the CPU."""
    cuda = torch.cuda
    cuda.current_device = lambda: "cpu"
    cuda.set_device = lambda *_: None
    cuda.synchronize = lambda *_: None
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.random.get_rng_state, cuda.random.set_rng_state = cuda.get_rng_state, cuda.set_rng_state
    cuda._lazy_call = lambda call, **_: None
    stream = types.SimpleNamespace(
        wait_stream=lambda *_: None, synchronize=lambda: None, wait_event=lambda *_: None
    )
    stream.record_event = lambda *_: stream
    cuda.current_stream = cuda.Stream = lambda *_, **__: stream
    torch.Tensor.record_stream = lambda *_: None
    cuda.stream = lambda *_: contextlib.nullcontext()
    cuda.FloatTensor = torch.FloatTensor
    for name in ("tensor", "zeros", "empty", "ones", "full", "arange", "triu"):
        setattr(torch, name, partial(on_cpu, getattr(torch, name)))
    plain = torch.Tensor.type
    torch.Tensor.type = lambda self, *args: plain(self, *args) if args else "torch.cuda.FloatTensor"
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.cuda = lambda self, *_, **__: self


def drawn(name, shape, zero_centered=False):
    """See the test."""
    values = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    if name.endswith("expert_bias"):
        return np.zeros(shape, np.float32)
    usual = 1.0 if name.endswith("norm.weight") and not zero_centered else 0.0
    return (usual + 0.1 * values).astype(np.float32)


def config_of(options):
    from megatron.core.activations import quick_gelu
    from megatron.core.transformer import MLATransformerConfig, TransformerConfig
    from megatron.core.transformer.heterogeneous.heterogeneous_config import (
        HeterogeneousTransformerConfig,
    )

    options = dict(options)
    yarn = options.pop("yarn", {})
    if options.get("activation_func") == "quick_gelu":
        options["activation_func"] = quick_gelu
    kind = MLATransformerConfig if options.get("multi_latent_attention") else TransformerConfig
    if "heterogeneous_layers_config_encoded_json" in options:
        kind = HeterogeneousTransformerConfig
    config = kind(
        **{
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "ffn_hidden_size": 48,
            "normalization": "RMSNorm",
            "add_bias_linear": False,
            "gated_linear_unit": True,
            "activation_func": F.silu,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "use_cpu_initialization": True,
            "init_method_std": 0.1,
            "moe_token_dispatcher_type": "alltoall",
            "moe_router_load_balancing_type": "none",
            "bias_activation_fusion": False,
            "masked_softmax_fusion": False,
            "gradient_accumulation_fusion": False,
            "persist_layer_norm": False,
            "apply_rope_fusion": False,
            **options,
        }
    )
    for name, value in yarn.items():  # the model reads them, the class has no such fields
        setattr(config, name, value)
    return config


def block_spec(config):
    """Local layers, and those of newer kinds."""
    import record_megatron_variants as variants
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.heterogeneous.heterogeneous_layer_specs import (
        get_gpt_heterogeneous_layer_spec,
    )

    if config.heterogeneous_block_specs:
        return get_gpt_heterogeneous_layer_spec(config)
    spec = get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, qk_l2_norm=config.qk_l2_norm
    )
    return variants.changed(spec, config)


def model_of(config, options):
    from megatron.core.models.gpt import GPTModel

    return GPTModel(
        config=config,
        transformer_layer_spec=block_spec(config),
        vocab_size=VOCABULARY,
        max_sequence_length=SEQUENCE,
        position_embedding_type=options.get("position", "rope"),
        share_embeddings_and_output_weights=False,
        rotary_base=10000,
        rotary_percent=options.get("rotary_percent", 1.0),
    )


def loss_of(model, batches, number):
    """Every token counts."""
    mask = torch.triu(torch.ones(1, 1, SEQUENCE, SEQUENCE), 1).bool()
    tokens, labels = (
        torch.from_numpy(batches[name][number]).long() for name in ("tokens", "labels")
    )
    places = torch.arange(SEQUENCE).expand_as(tokens)
    return model(tokens, places, mask, labels=labels).float().mean()


def run(options):
    import record_megatron_variants as variants
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker
    from megatron.core.transformer.moe.router import MoEAuxLossAutoScaler

    options = dict(options)
    extra = {
        key: options.pop(key) for key in ("position", "rotary_percent", "after") if key in options
    }
    config = config_of(options)
    model = model_of(config, extra)
    biases = [one for one in model.named_buffers() if one[0].endswith("expert_bias")]
    named = [*model.named_parameters(), *biases]
    with torch.no_grad():
        for name, value in named:
            if value is not None:
                value.copy_(
                    torch.from_numpy(
                        drawn(name, tuple(value.shape), config.layernorm_zero_centered_gamma)
                    )
                )
    wrapped = DistributedDataParallel(
        config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model
    )
    adam = {"adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-8}
    wanted = OptimizerConfig(
        optimizer="adam", lr=3e-3, min_lr=1e-4, weight_decay=0.1, clip_grad=1.0, **adam
    )
    optimizer = get_megatron_optimizer(wanted, [wrapped])
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=3e-3,
        min_lr=1e-4,
        lr_warmup_steps=16,
        lr_decay_steps=320,
        lr_decay_style="cosine",
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=320,
        wd_incr_style="constant",
    )
    MoEAuxLossAutoScaler.set_loss_scale(torch.tensor(1.0 / MICRO_BATCHES))
    variants.dsa.DSAIndexerLossAutoScaler.set_loss_scale(torch.tensor(1.0 / MICRO_BATCHES))
    batches = np.load(FILE.parent / "batches.npz")
    batches = {name: batches[name] for name in batches.files}
    result = {"loss": [], "grad_norm": []}
    for step in range(STEPS):
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        total = 0.0
        for part in range(MICRO_BATCHES):
            loss = loss_of(wrapped, batches, step * MICRO_BATCHES + part)
            (loss / MICRO_BATCHES).backward()
            total += loss.item() / MICRO_BATCHES
        finalize_model_grads([wrapped])
        for kind, entry in get_moe_layer_wise_logging_tracker().items():
            layers = (entry["values"] / MICRO_BATCHES).tolist()
            result.setdefault("layer_losses", {}).setdefault(kind, []).append(layers)
            entry["values"].zero_()
        variants.note_indexer_losses(result, MICRO_BATCHES)
        _, norm, _ = optimizer.step()
        if "after" in extra:
            result.setdefault("max_logit", []).append(extra["after"](model, config))
        scheduler.step(increment=8)
        result["loss"].append(total)
        result["grad_norm"].append(float(norm))
    return result


def main(names):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29791", RANK="0", WORLD_SIZE="1")
    replace_cuda()
    import record_megatron_variants as variants
    from megatron.core import __version__, parallel_state
    from megatron.core.tensor_parallel import layers, model_parallel_cuda_manual_seed
    from megatron.core.transformer.moe import moe_utils

    layers.reduce_from_tensor_model_parallel_region = lambda x, **_: (
        x.clone()
    )  # biases are added in place
    variants.replace_packages()
    moe_utils.te_general_gemm = None  # it asks for the name without Transformer Engine, too
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1234)
    known = CASES | variants.CASES
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {"cases": {}}
    recorded["common"] = COMMON
    for name in names or known:
        flags, options = known[name]
        result = run(options)
        recorded["cases"][name] = {"megatron": __version__, "flags": flags, **result}
        sys.stdout.write(f"{name}: {result['loss'][0]:.6f} {result['loss'][-1]:.6f}\n")
        FILE.write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
