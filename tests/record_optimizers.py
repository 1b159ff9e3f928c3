# SPDX-License-Identifier: Apache-2.0
"""Records ``tests/data/megatron_core/optimizers.json``: runs of Megatron-core's GPTModel on CPU.

    python tests/record_optimizers.py [NAME ...]

It runs where torch and ``megatron-core`` 0.16.1 are installed. Models and schedules are
Megatron-core's. Its Muon needs a library that PyPI lacks, so Newton-Schulz steps, Lion and the
factors of muP are written here from their papers. Weights and data are as in
``tests/megatron_runs.py``, which repeats the runs.
"""

import contextlib
import json
import os
import sys
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

DATA = Path(__file__).parent / "data"
FILE = DATA / "megatron_core" / "optimizers.json"
BATCHES = DATA / "golden" / "batches_a_gpt2_rank0.npz"
STEPS, MICRO_BATCHES, VOCABULARY, END = 40, 2, 512, 502
LLAMA = (
    "--position-embedding-type rope --rotary-base 10000 --normalization RMSNorm "
    "--norm-epsilon 1e-5 --swiglu --disable-bias-linear --untie-embeddings-and-output-weights "
    "--group-query-attention --num-query-groups 2 --ffn-hidden-size 48"
)
GPT = "--position-embedding-type learned_absolute --normalization LayerNorm"
USUAL = {"lr": 5e-3, "min-lr": 1e-4, "weight-decay": 0.1}
SCHEDULE = (
    "--lr-decay-style cosine --lr-warmup-iters 2 --lr-decay-iters 30 --clip-grad 1.0 "
    "--global-batch-size 4 --train-iters 40"
)
SIMPLE = [(3.4445, -4.7750, 2.0315)]
QUINTIC = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
POLAR = [
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
    (1.8726, -1.2307, 0.3585),
    (1.8564, -1.2132, 0.3568),
    *[(1.8750, -1.2500, 0.3750)] * 2,
]


def on_cpu():
    """Let Megatron-core run without a GPU, on one rank."""
    for name in ("tensor", "zeros", "ones", "empty", "arange", "full"):
        real = getattr(torch, name)

        def made(*args, real=real, **more):
            return real(*args, **({**more, "device": "cpu"} if "device" in more else more))

        setattr(torch, name, made)
    torch.cuda.current_device = lambda: "cpu"
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **more: self
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29555")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    torch.set_num_threads(1)


class Lion(torch.optim.Optimizer):
    """Chen et al., 2023."""

    @torch.no_grad()
    def step(self):
        """One step."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(torch.sign(first * m + (1 - first) * p.grad), alpha=group["lr"])
                m.lerp_(p.grad, 1 - second)


class Muon(torch.optim.Optimizer):
    """Jordan et al., 2024, with the options of Megatron-core's ``TensorParallelMuon``."""

    @torch.no_grad()
    def step(self):
        """One step."""
        for group in self.param_groups:
            for p in group["params"]:
                beta, grad = group["momentum"], p.grad
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                m.lerp_(grad, 1 - beta)
                moment = torch.lerp(grad, m, beta) if group["nesterov"] else m
                p.sub_(self._turned(p, moment, group), alpha=group["lr"])

    def _turned(self, p, moment, group):
        if group["adaptive"]:
            turned = newton_schulz(moment, group["steps"], group["rounds"])
            v = self.state[p].setdefault("moment2_buffer", torch.zeros_like(p))
            v.lerp_(turned.square(), 0.05)
            return turned / (v.sqrt() + 1e-8) * scale_of(p.shape, group)
        blocks = getattr(p, "blocks", None) if group["splits"] else None
        if blocks is None:
            return newton_schulz(moment, group["steps"], group["rounds"]) * scale_of(p.shape, group)
        parts = moment.view(-1, sum(blocks), p.shape[1]).split(blocks, dim=1)
        done = []
        for part in parts:
            flat = part.reshape(-1, p.shape[1])
            turned = newton_schulz(flat, group["steps"], group["rounds"])
            done.append((turned * scale_of(flat.shape, group)).view(part.shape))
        return torch.cat(done, dim=1).view(p.shape)


def scale_of(shape, group):
    """Factor on an orthogonal matrix."""
    rows, columns = shape
    ratio = {
        "spectral": max(rows, columns),
        "unit_rms_norm": rows / columns,
        "shape_scaling": max(1.0, rows / columns),
    }[group["scale"]]
    return ratio**0.5 * group["extra"]


def newton_schulz(x, steps, rounds):
    """The orthogonal matrix; ``rounds``: in bf16."""
    is_tall = x.shape[0] > x.shape[1]
    x = x.mT if is_tall else x
    x = x / x.norm().clamp_min(1e-7)
    x = x.bfloat16() if rounds else x
    for a, b, c in steps:
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.float().mT if is_tall else x.float()


def decayed(params, **more):
    """Groups with and without decay."""
    parts = (
        ([p for _, p in params if p.ndim > 1], 1.0),
        ([p for _, p in params if p.ndim < 2], 0.0),
    )
    return [{"params": ps, "wd_mult": w, "lr_mult": 1.0, **more} for ps, w in parts if ps]


def adam(params):
    """Of parameters or of groups."""
    groups = params if isinstance(params[0], dict) else decayed(params)
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)


def lion(params, betas=(0.95, 0.98)):
    """All parameters by Lion."""
    return Lion(decayed(params), {"betas": betas, "lr": 1.0, "weight_decay": 0.1})


def muon(steps=tuple(QUINTIC), scalar=adam, **more):
    """Matrices but embedding and head by Muon."""

    def make(model):
        config, matrices, rest = model.config, [], []
        heads = config.num_attention_heads // config.num_query_groups
        for name, p in model.named_parameters():
            if "linear_qkv.weight" in name:
                p.blocks = [heads * config.kv_channels, config.kv_channels, config.kv_channels]
            is_table = getattr(p, "is_embedding_or_output_parameter", False)
            (matrices if p.ndim == 2 and not is_table else rest).append((name, p))
        defaults = {"momentum": 0.9, "nesterov": False, "splits": True, "rounds": False}
        defaults |= {"adaptive": False, "scale": "spectral", "extra": 1.0, "lr": 1.0}
        defaults |= {"weight_decay": 0.1, "steps": steps, **more}
        return [Muon(decayed(matrices), defaults), scalar(rest)]

    return make


def mup(model, width=2.0, algorithm="adam", lr=5e-3):
    """Groups of Megatron-LM's ``get_mup_config_overrides``."""
    named = list(model.named_parameters())
    hidden = [(n, p) for n, p in named if p.ndim > 1 and "embedding" not in n]
    vector = [(n, p) for n, p in named if p.ndim < 2 or "embedding" in n]
    if algorithm == "sgd":
        bounds = {"max_lr": lr * width, "min_lr": 1e-4 * width}
        groups = [*decayed(hidden), *decayed(vector, **bounds)]
        return [torch.optim.SGD(groups, lr=lr, momentum=0.9)]
    bounds = {"max_lr": lr / width, "min_lr": 1e-4 / width, "eps": 1e-8 / width}
    return [adam([*decayed(hidden, **bounds), *decayed(vector)])]


def scaled(embedding, logits, model):
    """Multiply what embedding and head return."""
    model.embedding.register_forward_hook(lambda _, given, out: out * embedding)
    model.output_layer.register_forward_hook(lambda _, given, out: (out[0] * logits, out[1]))


def norms_decay(model):
    """The norms of queries and keys decay."""
    named = list(model.named_parameters())
    kept = [p for n, p in named if p.ndim > 1 or "q_layernorm." in n or "k_layernorm." in n]
    ids = {id(p) for p in kept}
    rest = [p for _, p in named if id(p) not in ids]
    return [adam([{"params": kept, "wd_mult": 1.0}, {"params": rest, "wd_mult": 0.0}])]


HIGH = "--muon-fp32-matmul-prec high"
CASES = {
    "lion": (
        *(LLAMA, "--optimizer lion --lion-beta1 0.9 --lion-beta2 0.95"),
        lambda m: [lion(list(m.named_parameters()), (0.9, 0.95))],
        {"lr": 5e-4, "min-lr": 1e-5},
    ),
    "muon": (LLAMA, "--optimizer muon", muon(rounds=True), {}),
    "dist_muon": (
        LLAMA,
        f"--optimizer dist_muon {HIGH} --muon-nesterov --muon-momentum 0.95 "
        "--muon-scale-mode shape_scaling --muon-num-ns-steps 10",
        muon(tuple(QUINTIC * 2), nesterov=True, momentum=0.95, scale="shape_scaling"),
        {},
    ),
    "muon_gpt": (
        GPT,
        f"--optimizer muon {HIGH} --muon-no-split-qkv --muon-momentum 0.95 --muon-coefficient-type "
        "polar_express --muon-num-ns-steps 9 --muon-scale-mode unit_rms_norm "
        "--muon-extra-scale-factor 0.5",
        muon(tuple(POLAR), splits=False, momentum=0.95, scale="unit_rms_norm", extra=0.5),
        {},
    ),
    "muon_lion": (
        GPT,
        f"--optimizer muon {HIGH} --muon-coefficient-type simple --muon-num-ns-steps 4 "
        "--muon-scalar-optimizer lion",
        muon(tuple(SIMPLE * 4), scalar=lion),
        {"lr": 1e-3},
    ),
    "adaptive_muon": (
        *(LLAMA, f"--optimizer adaptive_muon {HIGH} --muon-no-split-qkv"),
        muon(adaptive=True),
        {"lr": 1e-3},
    ),
    "mup": (
        LLAMA,
        "--use-mup --mup-base-hidden-size 16 --mup-embedding-mult 2 --mup-base-head-dim 4",
        mup,
        {"config": {"softmax_scale": 0.25}, "factors": (2.0, 0.5)},
    ),
    "mup_gpt": (
        GPT,
        "--use-mup --mup-base-hidden-size 16 --mup-output-mult 0.75 --mup-attn-scale-power 0.7 "
        "--optimizer sgd",
        partial(mup, algorithm="sgd", lr=2e-2),
        {"lr": 2e-2, "config": {"softmax_scale": 8.0**-0.7}, "factors": (1.0, 0.75)},
    ),
    "qk_decay": (
        *(LLAMA, "--qk-layernorm --apply-wd-to-qk-layernorm"),
        norms_decay,
        {"weight-decay": 2.0, "config": {"qk_layernorm": True}},
    ),
    "tokens_mtp": (
        LLAMA,
        "--mtp-num-layers 2 --mtp-loss-scaling-factor 0.5 --calculate-per-token-loss "
        "--eod-mask-loss",
        lambda m: [adam(list(m.named_parameters()))],
        {
            "config": {
                "mtp_num_layers": 2,
                "mtp_loss_scaling_factor": 0.5,
                "calculate_per_token_loss": True,
            }
        },
    ),
}


def drawn(name, shape):
    """As ``megatron_runs.drawn``."""
    values = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    usual = 1.0 if name.endswith("norm.weight") else 0.0
    return torch.from_numpy((usual + 0.1 * values).astype(np.float32))


def model_of(flags, more):
    """Megatron-core's model with those weights."""
    from megatron.core.models.gpt import GPTModel, gpt_layer_specs
    from megatron.core.transformer.transformer_config import TransformerConfig

    is_llama = flags is LLAMA
    sizes = {"ffn_hidden_size": 128}
    if is_llama:
        sizes = {"ffn_hidden_size": 48, "num_query_groups": 2, "layernorm_epsilon": 1e-5}
        sizes |= {"normalization": "RMSNorm", "gated_linear_unit": True, "add_bias_linear": False}
        sizes |= {"activation_func": F.silu}
    off = ("bias_activation_fusion", "bias_dropout_fusion", "masked_softmax_fusion")
    off += ("persist_layer_norm", "gradient_accumulation_fusion", "apply_rope_fusion")
    config = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        use_cpu_initialization=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        **dict.fromkeys(off, False),
        **sizes,
        **more,
    )
    spec = gpt_layer_specs.get_gpt_layer_local_spec(
        normalization=config.normalization, qk_layernorm=config.qk_layernorm
    )
    further = None
    if config.mtp_num_layers:
        further = gpt_layer_specs.get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False)
    model = GPTModel(
        config,
        spec,
        vocab_size=VOCABULARY,
        max_sequence_length=64,
        position_embedding_type="rope" if is_llama else "learned_absolute",
        rotary_base=10000,
        share_embeddings_and_output_weights=not is_llama,
        mtp_block_spec=further,
    )
    for name, p in model.named_parameters():
        p.data = drawn(name, tuple(p.shape))
    return model


def record(flags, own, make, more):
    """Losses, norms and learning rates of a case."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.transformer.multi_token_prediction import MTPLossAutoScaler

    MTPLossAutoScaler.set_loss_scale(torch.ones(1))
    rates = {name: more.get(name, usual) for name, usual in USUAL.items()}
    config = more.get("config", {})
    model = model_of(flags, config)
    if "factors" in more:
        scaled(*more["factors"], model)
    optimizers, by_tokens = make(model), "calculate_per_token_loss" in config

    class All:
        param_groups = [group for one in optimizers for group in one.param_groups]

    size = 2 * MICRO_BATCHES
    bounds = {"max_lr": rates["lr"], "min_lr": rates["min-lr"]}
    decay = rates["weight-decay"]
    scheduler = OptimizerParamScheduler(
        All,
        init_lr=0.0,
        lr_warmup_steps=2 * size,
        lr_decay_steps=30 * size,
        lr_decay_style="cosine",
        start_wd=decay,
        end_wd=decay,
        wd_incr_steps=STEPS * size,
        wd_incr_style="constant",
        **bounds,
    )
    stored, found = np.load(BATCHES), {"loss": [], "grad_norm": [], "learning_rate": []}
    for step in range(STEPS):
        model.zero_grad(set_to_none=True)
        total, tokens = 0.0, 0.0
        for number in range(step * MICRO_BATCHES, (step + 1) * MICRO_BATCHES):
            batch = {name: torch.from_numpy(stored[name][number]) for name in stored}
            mask = batch["loss_mask"].float()
            if by_tokens:
                mask = mask * (batch["tokens"] != END)
            given = {"loss_mask": mask.clone()} if by_tokens else {}
            losses = model(
                batch["tokens"], batch["position_ids"], None, labels=batch["labels"], **given
            )
            loss = (losses.float() * mask).sum()
            weight = 1.0 if by_tokens else 1.0 / mask.sum() / MICRO_BATCHES
            (loss * weight).backward()
            total, tokens = total + (loss * weight).item(), tokens + mask.sum().item()
        params = [p for p in model.parameters() if p.grad is not None]
        for p in params:
            p.grad /= tokens if by_tokens else 1.0
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
        for one in optimizers:
            one.step()
        scheduler.step(size)
        found["loss"].append(total / tokens if by_tokens else total)
        found["grad_norm"].append(float(norm))
        found["learning_rate"].append(scheduler.get_lr(bounds))
    words = " ".join(f"--{name} {value:g}" for name, value in rates.items())
    return {"megatron": "0.16.1", "flags": f"{flags} {SCHEDULE} {words} {own}", **found}


def main(wanted):
    """Record the named cases, or all."""
    on_cpu()
    import megatron.core.tensor_parallel.random as draws
    from megatron.core import parallel_state

    draws.CudaRNGStatesTracker.fork = lambda self, name="": contextlib.nullcontext()
    parallel_state.initialize_model_parallel(1, 1)
    content = json.loads(FILE.read_text(encoding="utf-8"))
    for name, (flags, own, make, more) in CASES.items():
        if not wanted or name in wanted:
            content["cases"][name] = record(flags, own, make, more)
    FILE.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
