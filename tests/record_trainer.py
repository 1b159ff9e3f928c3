# SPDX-License-Identifier: Apache-2.0
"""Records what ``transformers`` computes of a small GPT-2, for the trainer's tests.

Run it where torch, transformers and accelerate are installed, and nothing of this project is
needed: ``python tests/record_trainer.py`` writes ``tests/data/trainer/*.json``.
"""

from __future__ import annotations

import json
import tempfile
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
ARGUMENTS = FILE.with_name("arguments.json")
"""What ``transformers.Trainer`` logs of training with the arguments of ``CASES``."""
FIELDS = FILE.with_name("fields.json")
"""Arguments of ``transformers.TrainingArguments``, each with its value where none is given."""
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


COMMON = {
    "per_device_train_batch_size": BATCH,
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "max_steps": STEPS,
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "report_to": "none",
}
_STABLE = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 1}
_LEAST = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}}
CASES = {
    "a share of steps": {"lr_scheduler_type": "cosine", "warmup_steps": 0.25},
    "constant": {"lr_scheduler_type": "constant"},
    "constant after a rise": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
    "polynomial": {"lr_scheduler_type": "polynomial", "warmup_steps": 1},
    "restarts": {"lr_scheduler_type": "cosine_with_restarts", "warmup_steps": 1},
    "root": {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 2},
    "least rate": {**_LEAST, "warmup_steps": 1},
    "stable": {**_STABLE, "lr_scheduler_kwargs": {"num_decay_steps": 3}},
    "stable, then linear": {
        **_STABLE,
        "lr_scheduler_kwargs": {"num_decay_steps": 3, "decay_type": "linear"},
    },
    "parts": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "smoothed": {"label_smoothing_factor": 0.1},
    "sgd": {"optim": "sgd"},
    "optimizer": {"optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.9},
    "epsilon": {"optim": "adamw_torch_fused", "adam_epsilon": 1e-4, "max_grad_norm": 0.3},
    "free": {"max_grad_norm": 0.0},
    "again": {"gradient_checkpointing": True},
    "passes": {"max_steps": -1, "num_train_epochs": 1.5},
    "by passes": {
        "max_steps": -1,
        "num_train_epochs": 2,
        "logging_strategy": "epoch",
        "eval_strategy": "epoch",
    },
    "evaluated": {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 3},
    "the first step too": {"logging_first_step": True, "logging_steps": 4},
}
"""What is tried -> arguments of the trainer besides ``COMMON``."""
COMPARED = ("loss", "learning_rate", "grad_norm", "eval_loss", "train_loss", "epoch", "step")


def answers():
    """Rows of which the first ids are not learned.

    Never the very first: ``transformers.Trainer`` counts it among the labels of a step, though it
    has nothing before it, and divides by one token too many.
    """
    generator = np.random.default_rng(3)
    hidden = generator.integers(1, 14, STEPS * BATCH).tolist()
    rows = zip(training_rows(), hidden, strict=True)
    return [{"input_ids": ids, "labels": [-100] * k + ids[k:]} for ids, k in rows]


def _model():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    made = GPT2LMHeadModel(GPT2Config(**CONFIG))
    made.load_state_dict({k: torch.tensor(v) for k, v in weights().items()}, strict=False)
    return made.tie_weights() or made


def logged():
    """History of a training by case; times are left out."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    found = {}
    for name, arguments in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=_model(),
                args=TrainingArguments(folder, use_cpu=True, **{**COMMON, **arguments}),
                train_dataset=answers(),
                eval_dataset=answers()[:5],
                data_collator=default_data_collator,
            )
            trainer.train()
        found[name] = [
            {key: value for key, value in entry.items() if key in COMPARED}
            for entry in trainer.state.log_history
        ]
    return found


def fields():
    """Value where none is given, of each argument."""
    from dataclasses import MISSING
    from dataclasses import fields as fields_of

    from transformers import TrainingArguments

    found = {}
    for one in fields_of(TrainingArguments):
        made = None if one.default_factory is MISSING else one.default_factory()
        value = made if one.default is MISSING else one.default
        found[one.name] = getattr(value, "value", value)
    return found


def main():
    """Compute, and write."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    evaluated = _model().eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows():
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            tokens = int((labels[:, 1:] != -100).sum())
            total += float(evaluated(ids, labels=labels).loss) * tokens
            count += tokens
    trained = _model().train()
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
    ARGUMENTS.write_text(json.dumps(logged(), indent=1) + "\n")
    FIELDS.write_text(json.dumps(fields(), indent=0) + "\n")


if __name__ == "__main__":
    main()
