# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family, as ``transformers`` computed them; see tools/record_families.py."""

from __future__ import annotations

import json
from pathlib import Path

import family_weights
from safetensors.numpy import save_file

DATA = Path(__file__).parent / "data" / "families"
CASES = sorted(path.stem for path in DATA.glob("*.json"))
UNUSUAL = sorted(f"unusual/{path.stem}" for path in DATA.glob("unusual/*.json"))
"""Rare settings, on one rank only."""
ALIKE = {
    *("arcee", "dots1", "ernie4_5", "exaone4", "helium", "kimi_k2", "ministral", "nemotron"),
    *("internlm2", "mpt", "olmo", "olmo3", "opt", "seed_oss", "smollm3", "starcoder2"),
    *("codegen", "cwm", "exaone_moe", "flex_olmo", "glm4_moe_lite", "glm_moe_dsa", "gpt_bigcode"),
    *("gpt_neo", "gptj", "granitemoe", "granitemoeshared", "hyperclovax", "internlm3", "jais2"),
    *("ernie4_5_moe", "minimax_m2", "persimmon", "qwen3_next", "solar_open"),
}
"""Families whose layers are made of what other families have."""
LAYOUTS = {
    "tp2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2, "allow_uneven_stages": True},
    "ep2": {"expert_model_parallel_size": 2},
}
LENGTH, BATCH = 12, 4
BOUND = 2e-5
"""Most that a logit may differ."""


def recorded(case):
    return json.loads((DATA / f"{case}.json").read_text(encoding="utf-8"))


def write_folder(case, folder):
    """The model's folder; return what was recorded."""
    content = recorded(case)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content["config"]), encoding="utf-8")
    tensors = {
        name: family_weights.values(name, tuple(shape))
        for name, shape in content["tensors"].items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return content


def layouts_of(case):
    """Names of the layouts that a case is run in."""
    has_experts = any(".experts." in name for name in recorded(case)["tensors"])
    return ["tp2", "pp2", *(["ep2"] if has_experts else [])]
