# SPDX-License-Identifier: Apache-2.0
"""Megatron core's side of ``half_precision.py``: training a recorded run in bfloat16.

Runs in an interpreter with torch and megatron-core, imports nothing of this project, and prints one
line of JSON: the losses of each draw in fp32 and bf16. The model is Megatron's; the update is AdamW
on fp32 copies, written out, because only the arithmetic of the model is compared.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron_side import pretend_cuda


def model_of(words: list[str], kind: torch.dtype) -> Any:
    """Megatron's model of a recorded command line."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    is_llama = "--swiglu" in words
    value = {name: words[words.index(name) + 1] for name in words[:-1] if name.startswith("--")}
    hidden = int(value["--hidden-size"])
    config = TransformerConfig(
        num_layers=int(value["--num-layers"]),
        hidden_size=hidden,
        ffn_hidden_size=int(value.get("--ffn-hidden-size", 4 * hidden)),
        num_attention_heads=int(value["--num-attention-heads"]),
        num_query_groups=int(value["--num-query-groups"]) if is_llama else None,
        normalization=value["--normalization"],
        layernorm_epsilon=1e-5,
        gated_linear_unit=is_llama,
        activation_func=torch.nn.functional.silu if is_llama else torch.nn.functional.gelu,
        add_bias_linear=not is_llama,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=True,
        bf16=kind == torch.bfloat16,
        params_dtype=kind,
        pipeline_dtype=kind,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )
    spec = get_gpt_layer_local_spec(normalization=value["--normalization"])
    return GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=512,
        max_sequence_length=int(value["--seq-length"]),
        position_embedding_type=value["--position-embedding-type"],
        share_embeddings_and_output_weights=not is_llama,
    )


def train(
    run: dict[str, Any], weights: dict[str, np.ndarray], batches: Any, kind: torch.dtype
) -> list[float]:
    """Losses of the iterations that the batches are of, four micro-batches each."""
    from megatron.core.transformer.module import Float16Module

    bare = model_of(run["command_line"], kind)
    bare.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()}, strict=False)
    model = bare if kind == torch.float32 else Float16Module(bare.config, bare)
    params = dict(bare.named_parameters())
    main = {n: torch.from_numpy(weights[n].copy()) for n in params}
    moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in main.items()}
    length = batches["tokens"].shape[-1]
    mask = torch.tril(torch.ones(1, 1, length, length)) < 0.5
    losses = []
    rates = [0.0, *run["learning_rate"]]  # Megatron records the rate of the next step
    for step in range(len(batches["tokens"]) // 4):
        grads = {n: torch.zeros_like(w) for n, w in main.items()}
        total = 0.0
        for index in range(4 * step, 4 * step + 4):
            tokens, labels, places, counted = (
                torch.from_numpy(np.array(batches[name][index]))
                for name in ("tokens", "labels", "position_ids", "loss_mask")
            )
            loss = model(tokens, places, mask, labels=labels).float()
            loss = (loss * counted).sum() / counted.sum()
            (loss / 4).backward()
            total += loss.item() / 4
            for name, param in params.items():
                grads[name] += param.grad.float()
                param.grad = None
        losses.append(total)
        norm = torch.sqrt(sum((g**2).sum() for g in grads.values())).item()
        for name, param in params.items():
            grad = grads[name] * min(1.0, 1.0 / (norm + 1e-6))
            first, second = moments[name]
            first.mul_(0.9).add_(grad, alpha=0.1)
            second.mul_(0.95).addcmul_(grad, grad, value=0.05)
            decay = 0.0 if grad.ndim == 1 else 0.1
            main[name].mul_(1 - rates[step] * decay)
            scale = (second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
            main[name].addcdiv_(first / (1 - 0.9 ** (step + 1)), scale, value=-rates[step])
            param.data.copy_(main[name])
    return losses


def main() -> None:
    """Train every file of weights in both types."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("batches", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    arguments = parser.parse_args()
    pretend_cuda()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(1, 1)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    run = json.loads(arguments.run.read_text(encoding="utf-8"))
    batches = np.load(arguments.batches)
    files = [dict(np.load(path)) for path in arguments.weights]
    found = {
        "float32": [train(run, weights, batches, torch.float32) for weights in files],
        "bfloat16": [train(run, weights, batches, torch.bfloat16) for weights in files],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
