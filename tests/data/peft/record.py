# SPDX-License-Identifier: Apache-2.0
"""Adapters of ``peft`` and what they compute, recorded: ``python record.py`` writes the folders.

Run where torch, transformers and peft are installed (recorded with peft 0.21.2, transformers
5.24.0, torch 2.13.0, fp32). Each folder ``CASE`` holds a base model, ``adapter`` in PEFT's files,
and ``expected.npz``: logits of the base and with the adapter, the batches of five steps, and the
losses of ``torch.optim.AdamW`` on the adapter alone.

    python record.py             writes every case
    python record.py check BASE ADAPTER NPZ
                                 logits of an adapter that was written elsewhere, against NPZ
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

VOCAB, WIDTH, TOKENS, STEPS, RATE = 64, 16, 12, 5, 5e-3
LIKE_LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "vocab_size": VOCAB,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
GPT2 = {
    "n_layer": 2,
    "n_embd": WIDTH,
    "n_head": 4,
    "n_positions": 32,
    "vocab_size": VOCAB,
    "initializer_range": 0.15,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEOX = {
    **{key: value for key, value in LIKE_LLAMA.items() if key != "num_key_value_heads"},
    **{"attention_dropout": 0.0, "hidden_dropout": 0.0, "rotary_pct": 0.5},
}
FUSED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CASES = {
    "gpt2_c_attn": (
        transformers.GPT2Config(**GPT2),
        {"r": 4, "lora_alpha": 16, "target_modules": ["c_attn"], "fan_in_fan_out": True},
    ),
    "llama_qv": (
        transformers.LlamaConfig(**LIKE_LLAMA),
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    ),
    "llama_patterns": (
        transformers.LlamaConfig(**LIKE_LLAMA),
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": "all-linear",
            "exclude_modules": ["o_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 6, "down_proj": 2},
            "alpha_pattern": {"up_proj": 3},
            "use_rslora": True,
        },
    ),
    "qwen2_dora": (
        transformers.Qwen2Config(**LIKE_LLAMA),
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_dora": True},
    ),
    "phi3_fused": (
        transformers.Phi3Config(**LIKE_LLAMA, **FUSED),
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    ),
    "neox_fused": (
        transformers.GPTNeoXConfig(**NEOX, **FUSED),
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"],
            "use_dora": True,
        },
    ),
    "glm4_fused": (
        transformers.Glm4Config(**LIKE_LLAMA, **FUSED, head_dim=4),
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "gate_up_proj"]},
    ),
    "mixtral_experts": (
        transformers.MixtralConfig(
            **LIKE_LLAMA, num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.0
        ),
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
    "mixtral_targets": (
        transformers.MixtralConfig(
            **LIKE_LLAMA, num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.0
        ),
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "w1", "w2", "w3"]},
    ),
    "deepseek_latent": (
        transformers.DeepseekV3Config(
            **{**LIKE_LLAMA, "num_key_value_heads": 4},
            **{"moe_intermediate_size": 12, "n_routed_experts": 4, "n_shared_experts": 1},
            **{"num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1},
            **{"topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4},
            **{"qk_nope_head_dim": 4, "v_head_dim": 4, "num_nextn_predict_layers": 0},
        ),
        {
            "r": 3,
            "lora_alpha": 8,
            "target_modules": [
                *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
                *("gate_proj", "up_proj", "down_proj"),
            ],
        },
    ),
}


def logits_of(model, tokens):
    """Logits [b, s, v]."""
    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def record(folder, config, options):
    """One case."""
    torch.manual_seed(5)
    shutil.rmtree(folder, ignore_errors=True)
    base = transformers.AutoModelForCausalLM.from_config(config)
    base.save_pretrained(folder)
    generator = np.random.default_rng(9)
    tokens = generator.integers(3, VOCAB, (2, TOKENS))
    batches = generator.integers(3, VOCAB, (STEPS, 2, TOKENS + 1))
    arrays = {"tokens": tokens, "batches": batches, "base": logits_of(base, tokens)}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "magnitude" in name:
            parameter.data *= 1.0 + 0.1 * torch.randn_like(parameter)
    arrays["adapted"] = logits_of(model, tokens)
    model.save_pretrained(folder / "adapter")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    arrays["trained"] = np.array(sum(parameter.numel() for parameter in trained))
    rule = torch.optim.AdamW(trained, RATE, (0.9, 0.999), 1e-8, 0.0)
    model.train()
    losses = []
    for batch in batches:
        rows = torch.from_numpy(batch)
        loss = model(rows, labels=rows).loss
        losses.append(loss.item())
        rule.zero_grad()
        loss.backward()
        rule.step()
    arrays["losses"] = np.array(losses)
    np.savez_compressed(folder / "expected.npz", **arrays)
    for path in (folder / "adapter" / "README.md", folder / "generation_config.json"):
        path.unlink(missing_ok=True)
    path = folder / "model.safetensors"
    save_file({key: value.contiguous() for key, value in load_file(path).items()}, path)
    return losses


def check(base, adapter, npz):
    """Largest difference of logits between an adapter and a recorded one."""
    expected = np.load(npz)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, adapter)
    return float(np.abs(logits_of(model, expected["tokens"]) - expected["adapted"]).max())


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        sys.stdout.write(json.dumps(check(*sys.argv[2:])) + "\n")
    else:
        for case, (config, options) in CASES.items():
            found = record(Path(__file__).parent / case, config, options)
            sys.stdout.write(f"{case} {found}\n")
