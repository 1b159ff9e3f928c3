# SPDX-License-Identifier: Apache-2.0
"""Records what ``transformers`` computes of a small GPT-2, for the trainer's tests.

Run it where torch and transformers are installed, and nothing of this project is needed:
``python tests/record_trainer.py`` writes ``tests/data/trainer/gpt2.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("data") / "trainer" / "gpt2.json"
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 64,
    "n_positions": 16,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
STEPS, BATCH, RATE, WARMUP, DECAY = 6, 4, 1e-2, 2, 0.1


def weights():
    """Weights of the model, float32 by name."""
    generator = np.random.default_rng(7)
    width = CONFIG["n_embd"]
    shapes = {"transformer.wte.weight": (64, width), "transformer.wpe.weight": (16, width)}
    for layer in range(CONFIG["n_layer"]):
        block = f"transformer.h.{layer}."
        shapes |= {
            f"{block}ln_1.weight": (width,),
            f"{block}ln_1.bias": (width,),
            f"{block}attn.c_attn.weight": (width, 3 * width),
            f"{block}attn.c_attn.bias": (3 * width,),
            f"{block}attn.c_proj.weight": (width, width),
            f"{block}attn.c_proj.bias": (width,),
            f"{block}ln_2.weight": (width,),
            f"{block}ln_2.bias": (width,),
            f"{block}mlp.c_fc.weight": (width, 4 * width),
            f"{block}mlp.c_fc.bias": (4 * width,),
            f"{block}mlp.c_proj.weight": (4 * width, width),
            f"{block}mlp.c_proj.bias": (width,),
        }
    shapes |= {"transformer.ln_f.weight": (width,), "transformer.ln_f.bias": (width,)}
    found = {}
    for name, shape in shapes.items():
        drawn = generator.normal(0.0, 0.2, shape).astype(np.float32)
        is_scale = ".ln_" in name and name.endswith("weight")
        found[name] = drawn + np.float32(1.0) if is_scale else drawn
    return found


def rows():
    """Rows of ids of several lengths, and labels, some of which do not count."""
    generator = np.random.default_rng(8)
    found = []
    for length in (16, 16, 9, 12, 16, 5, 16):
        ids = generator.integers(1, 64, length).tolist()
        hidden = int(generator.integers(0, 4))
        found.append({"input_ids": ids, "labels": [-100] * hidden + ids[hidden:]})
    return found


def training_rows():
    """Rows of ids of one length."""
    return np.random.default_rng(9).integers(1, 64, (STEPS * BATCH, 16)).tolist()


def main():
    """Compute, and write."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, get_linear_schedule_with_warmup

    def model():
        made = GPT2LMHeadModel(GPT2Config(**CONFIG))
        made.load_state_dict({k: torch.tensor(v) for k, v in weights().items()}, strict=False)
        return made.tie_weights() or made

    evaluated = model().eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows():
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            tokens = int((labels[:, 1:] != -100).sum())
            total += float(evaluated(ids, labels=labels).loss) * tokens
            count += tokens
    trained = model().train()
    named = list(trained.named_parameters())
    plain = [p for n, p in named if n.endswith("bias") or ".ln_" in n]
    decayed = [p for n, p in named if not (n.endswith("bias") or ".ln_" in n)]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses = []
    data = torch.tensor(training_rows())
    for step in range(STEPS):
        batch = data[step * BATCH : (step + 1) * BATCH]
        loss = trained(batch, labels=batch).loss
        losses.append(float(loss))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    FILE.parent.mkdir(exist_ok=True)
    found = {"loss": total / count, "tokens": count, "losses": losses}
    FILE.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
