# SPDX-License-Identifier: Apache-2.0
"""Record what tiny models of every family compute in ``transformers``.

Run it in an environment with ``transformers`` and ``torch``::

    python tools/record_families.py [CASE ...]

Each case becomes ``tests/data/families/CASE.json``, one of rare settings a file in ``unusual/``
there: the ``config.json`` as ``transformers`` writes it, names and shapes of the tensors, a prompt,
its logits, and the tokens that follow greedily. The weights are those of
``tests/family_weights.py``, so they are not recorded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "tests" / "data" / "families"
sys.path.insert(0, str(ROOT / "tests"))

from family_rare_settings import UNUSUAL  # noqa: E402 - beside this file
from family_settings import CASES, SIZES  # noqa: E402
from family_weights import values  # noqa: E402 - beside the tests

_ALL = SIZES.keys() - {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}

UNKNOWN = {
    "CodeGen": _ALL,
    "Falcon": {"intermediate_size", "num_key_value_heads"},
    "GPT2": _ALL,
    "GPTBigCode": _ALL,
    "GPTJ": _ALL,
    "GPTNeo": _ALL,
    "GPTNeoX": {"num_key_value_heads"},
    "OPT": {"intermediate_size", "num_key_value_heads"},
    "Mpt": _ALL,
    "Bloom": _ALL - {"hidden_size"},
    "Persimmon": {"num_key_value_heads"},
    "SolarOpen": {"intermediate_size"},
}
"""Sizes that a configuration has no key for."""

RENAMED = {"kimi_k2", "internlm2"}
"""Cases of a model type that computes as another one does, whose class there is."""

Tensors = dict[str, np.ndarray]

_INTERNLM2 = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def internlm2_of(llama: Tensors, head_dim: int) -> tuple[Tensors, Tensors]:
    """Tensors under InternLM 2's names, and those of the Llama that computes the same.

    A matrix ``wqkv`` holds the queries, the key and the value of each group of heads.
    """
    theirs: Tensors = {}
    same: Tensors = {}
    for key, array in llama.items():
        if "q_proj" in key:
            name = key.replace("self_attn.q_proj", "attention.wqkv")
            group = llama[key.replace("q_proj", "k_proj")].shape[0] // head_dim
            rows = array.shape[0] + 2 * group * head_dim
            theirs[name] = values(name, (rows, *array.shape[1:]))
            parts = theirs[name].reshape(group, -1, head_dim, *array.shape[1:])
            for word, part in zip("qkv", np.split(parts, [-2, -1], axis=1), strict=True):
                same[key.replace("q_proj", f"{word}_proj")] = part.reshape(-1, *array.shape[1:])
        elif "k_proj" not in key and "v_proj" not in key:
            name = key
            for word, own in _INTERNLM2.items():
                name = name.replace(word, own)
            theirs[name] = same[key] = values(name, array.shape)
    return theirs, {key: np.ascontiguousarray(array) for key, array in same.items()}


PROMPT, NEW = 20, 4


def model_of(name: str, changes: dict[str, Any]) -> torch.nn.Module:
    """A random model."""
    sizes = {key: value for key, value in SIZES.items() if key not in UNKNOWN.get(name, ())}
    config = getattr(transformers, f"{name}Config")(**{**sizes, **changes})
    return transformers.AutoModelForCausalLM.from_config(config)


def record(case: str) -> None:
    """Write one case."""
    is_usual = case in CASES
    name, changes = CASES[case] if is_usual else UNUSUAL[case]
    with tempfile.TemporaryDirectory() as folder:
        model_of(name, changes).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        tensors = {key: values(key, array.shape) for key, array in load_file(path).items()}
        theirs = tensors
        if case == "internlm2":
            theirs, tensors = internlm2_of(tensors, SIZES["hidden_size"] // 4)
        shapes = {key: array.shape for key, array in theirs.items()}
        save_file(tensors, path, metadata={"format": "pt"})
        # Falcon's eager attention counts alibi twice, its usual one once.
        attention = "sdpa" if changes.get("alibi") else "eager"
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=attention, dtype=torch.float32
        ).eval()
        config = json.loads((Path(folder) / "config.json").read_text())
    if case in RENAMED:
        config["model_type"] = case
    if case == "internlm2":
        config["bias"] = config.pop("attention_bias")
        config["architectures"] = ["InternLM2ForCausalLM"]
        for key in ("mlp_bias", "head_dim"):
            del config[key]
    ids = np.random.RandomState(7).randint(0, SIZES["vocab_size"], PROMPT).tolist()
    tokens = list(ids)
    with torch.no_grad():
        for step in range(NEW):
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
            if step == 0:
                first = logits.double().numpy()
            tokens.append(int(logits[-1].argmax()))
    sys.stdout.write(f"{case}: {len(shapes)} tensors, logits to {np.abs(first).max():.3g}\n")
    content = {
        "config": config,
        "tensors": shapes,
        "prompt": ids,
        "greedy": tokens[PROMPT:],
        "logits": [[float(f"{value:.8g}") for value in row] for row in first],
    }
    target = TARGET if is_usual else TARGET / "unusual"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{case}.json").write_text(json.dumps(content) + "\n")


def record_defaults() -> None:
    """Write what each class of configurations takes for a key that a file leaves out."""
    types = {json.loads(path.read_text())["config"]["model_type"] for path in TARGET.glob("*.json")}
    defaults = {}
    for model_type in sorted(types - RENAMED):
        values = transformers.CONFIG_MAPPING[model_type]().to_dict()
        defaults[model_type] = {
            key: value
            for key, value in values.items()
            if key not in ("id2label", "label2id", "transformers_version")
        }
    text = json.dumps(defaults, separators=(",", ":"), default=str)
    (TARGET.parent / "family_defaults.json").write_text(text + "\n")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or [*CASES, *UNUSUAL]:
        record(wanted)
    record_defaults()
