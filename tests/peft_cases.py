# SPDX-License-Identifier: Apache-2.0
"""Runs on the adapters that ``tests/data/peft/record.py`` has recorded."""

from pathlib import Path

import numpy as np

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.config.build import assemble
from mindspeed_ms.engine.run import Run, StepFunctions
from mindspeed_ms.formats import peft
from mindspeed_ms.formats.huggingface import read_config
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.models.families.registry import family_of_type

DATA = Path(__file__).parent / "data" / "peft"
CASES = [
    *("gpt2_c_attn", "llama_qv", "llama_patterns", "qwen2_dora", "mixtral_experts"),
    *("phi3_fused", "neox_fused", "glm4_fused", "mixtral_targets"),
    "deepseek_latent",
]


def sections(case, layout=None, **lora):
    """Sections of a run on a recorded case, in a layout."""
    theirs = read_config(DATA / case / "config.json")
    found = family_of_type(theirs["model_type"]).sections(theirs)
    found["model_config"] |= {
        "compute_dtype": "float32",
        "params_dtype": "float32",
        "softmax_compute_dtype": "float32",
        "hidden_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "seq_length": 12,
    }
    if "moe_config" in found:
        found["moe_config"] |= {"moe_aux_loss_coeff": 0.0, "moe_token_dispatcher_type": "alltoall"}
    options = peft.read_options(DATA / case / "adapter")
    found["lora_config"] = peft.section_of(options) | {
        "base_model_name_or_path": str(DATA / case),
        **lora,
    }
    found["training_config"] = {
        "training_iters": 5,
        "save_checkpoints": False,
        "load_checkpoint": str(DATA / case / "adapter"),
        "global_batch_size": 2,
    }
    found["dataset_config"] = {"batch_size": 2, "vocab_size": 64}
    found["parallel_config"] = layout or {}
    found["optimizer_config"] = {
        "learning_rate": 5e-3,
        "weight_decay": 0.0,
        "betas": (0.9, 0.999),
        "clip_grad": 0.0,
    }
    return found


def batches(case, config):
    """Micro-batches of this data parallel rank."""
    size = config.dataset_config.batch_size
    first = size * parallel_rank(config)
    return [
        {"input_ids": rows[first : first + size].astype(np.int32)}
        for rows in expected(case)["batches"]
    ]


def parallel_rank(config):
    """Number of the data parallel rank; with two ranks there is one kind of parallelism."""
    is_data = config.parallel_config.data_parallel_size(comm.get_world_size()) > 1
    return comm.get_rank() if is_data else 0


def expected(case):
    return np.load(DATA / case / "expected.npz")


def opened(case, found=None, losses=None):
    config = assemble(found or sections(case))

    def provider(pre_process, post_process):
        return GPTModel(config.model_config, pre_process=pre_process, post_process=post_process)

    functions = StepFunctions(
        on_step=None if losses is None else lambda step: losses.append(step.losses["lm loss"])
    )
    return Run(config, provider, train_data_loader=batches(case, config), functions=functions)


def logits_of(run, case):
    tokens = expected(case)["tokens"].astype(np.int32)
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    module = run.model[0].module
    module.set_train(False)
    with run.active(), autograd.no_grad():
        result = module(
            memory.from_numpy(tokens), memory.from_numpy(np.ascontiguousarray(places)), None
        )
    module.set_train(True)
    return memory.as_numpy(memory.contiguous(result))[..., :64]
