# SPDX-License-Identifier: Apache-2.0
"""Record what ``transformers`` generates, for tests/unit/toolkit/test_generation.py.

``python tests/record_generation.py`` with torch and transformers writes tests/data/generation. The
weights are no part of it: both sides draw them from the names of the tensors.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "data/generation"
VOCABULARY, HIDDEN, LAYERS, POSITIONS, END, PAD = 96, 32, 2, 64, 7, 0

_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MODELS = {
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": POSITIONS,
    },
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 4},
    "mixtral": {**_LLAMA, **_EXPERTS},
}

PROMPTS = [[5, 17, 3, 42, 8, 9], [61, 2, 33, 4, 90, 11]]
SHORTER = [[PAD, PAD, 3, 42, 8, 9], [61, 2, 33, 4, 90, 11], [PAD, PAD, PAD, PAD, PAD, 50]]
MASK = [[0, 0, 1, 1, 1, 1], [1] * 6, [0] * 5 + [1]]

PLAIN = {"eos_token_id": END, "pad_token_id": PAD, "max_new_tokens": 16}
OPTIONS = {
    "greedy": {},
    "greedy, max_length": {"max_new_tokens": None, "max_length": 13},
    "no end": {"eos_token_id": None, "max_new_tokens": 20},
    "several ends": {"eos_token_id": [END, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30]},
    "repetition": {"repetition_penalty": 1.4},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[10], [33, 4], [60], [61], [62]]},
    "least": {"min_new_tokens": 10, "eos_token_id": list(range(7, 40))},
    "least length": {"min_length": 9, "eos_token_id": list(range(7, 40))},
    "bias": {"sequence_bias": [[[12], 3.0], [[5, 6], -4.0], [[40], 2.0]]},
    "suppressed": {"suppress_tokens": [3, 4, 5, 60], "begin_suppress_tokens": [11, 12, 80]},
    "forced end": {"forced_eos_token_id": END, "exponential_decay_length_penalty": (2, 1.3)},
    "beams": {"num_beams": 3},
    "beams, several ends": {"num_beams": 3, "eos_token_id": [END, 20, 21, 30, 31, 50, 51, 70]},
    "beams, early": {
        "num_beams": 4,
        "early_stopping": True,
        "length_penalty": 2.0,
        "num_return_sequences": 2,
        "eos_token_id": list(range(7, 30)),
    },
    "beams, never early": {
        "num_beams": 3,
        "early_stopping": "never",
        "length_penalty": -0.5,
        "num_return_sequences": 3,
        "eos_token_id": list(range(7, 30)),
    },
    "beams, penalties": {"num_beams": 3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "like the prompt": {"encoder_repetition_penalty": 1.6},
    "beams, unlike the prompt": {
        "num_beams": 3,
        "encoder_repetition_penalty": 0.7,
        "encoder_no_repeat_ngram_size": 2,
        "num_return_sequences": 2,
    },
}
PADDED = {"greedy": {}, "beams": {"num_beams": 2}, "repetition": {"repetition_penalty": 1.5}}


def weights_of(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Values of tensors, drawn by their names."""
    values = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        drawn = rng.standard_normal(shape) * 0.35
        is_scale = name.endswith("weight") and len(shape) == 1
        values[name] = (drawn * 0.2 + 1.0 if is_scale else drawn).astype(np.float32)
    return values


def _record_model(model_type: str) -> dict:
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **MODELS[model_type])
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    names = [name for name, _ in model.named_parameters()]
    shapes = {name: list(model.get_parameter(name).shape) for name in names}
    file_shapes, file_values = shapes, None
    folder = FOLDER / "tmp"
    if model_type == "mixtral":  # its files hold one matrix per expert
        model.save_pretrained(folder)
        from safetensors.torch import load_file

        file_shapes = {k: list(v.shape) for k, v in load_file(folder / "model.safetensors").items()}
    values = weights_of(file_shapes)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    from safetensors.numpy import save_file

    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    file_values = json.loads((folder / "config.json").read_text())
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    results = {}
    for name, options in OPTIONS.items():
        found = model.generate(torch.tensor(PROMPTS), **{**PLAIN, **options})
        results[name] = found.tolist()
    for name, options in PADDED.items():
        found = model.generate(
            torch.tensor(SHORTER), attention_mask=torch.tensor(MASK), **{**PLAIN, **options}
        )
        results[f"padded {name}"] = found.tolist()
    scored = {}
    for name in ("repetition", "beams, several ends"):
        found = model.generate(
            torch.tensor(PROMPTS),
            **{**PLAIN, **OPTIONS[name]},
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
        transition = model.compute_transition_scores(
            found.sequences, found.scores, getattr(found, "beam_indices", None)
        )
        scored[name] = {"transition": np.round(transition.numpy(), 6).tolist()}
        if "beams" in name:
            scored[name]["sequences_scores"] = found.sequences_scores.tolist()
            scored[name]["beam_indices"] = found.beam_indices.tolist()
    return {
        "config": file_values,
        "shapes": file_shapes,
        "tokens": results,
        "scored": scored,
    }


PROCESSORS = {
    "repetition": ("RepetitionPenaltyLogitsProcessor", (1.3,)),
    "n-grams": ("NoRepeatNGramLogitsProcessor", (2,)),
    "bias": ("SequenceBiasLogitsProcessor", ([[[3], 1.5], [[4, 5], -2.0], [[1, 2, 6], 1.0]],)),
    "bad words": ("NoBadWordsLogitsProcessor", ([[3], [4, 5], [1, 2, 6], [7]], 7)),
    "least": ("MinLengthLogitsProcessor", (30, [7, 8])),
    "least reached": ("MinLengthLogitsProcessor", (5, [7, 8])),
    "forced": ("ForcedEOSTokenLogitsProcessor", (13, 7)),
    "not forced": ("ForcedEOSTokenLogitsProcessor", (14, 7)),
    "invalid": ("InfNanRemoveLogitsProcessor", ()),
    "decay": ("ExponentialDecayLengthPenalty", ((2, 1.3), [7, 8], 4)),
    "suppressed": ("SuppressTokensLogitsProcessor", ([1, 2, 9],)),
    "suppressed first": ("SuppressTokensAtBeginLogitsProcessor", ([1, 2, 9], 12)),
    "temperature": ("TemperatureLogitsWarper", (0.7,)),
    "top_k": ("TopKLogitsWarper", (5,)),
    "top_p": ("TopPLogitsWarper", (0.8,)),
    "top_p of two": ("TopPLogitsWarper", (0.05, -float("inf"), 2)),
    "min_p": ("MinPLogitsWarper", (0.2,)),
    "typical_p": ("TypicalLogitsWarper", (0.6,)),
    "epsilon": ("EpsilonLogitsWarper", (0.05,)),
    "eta": ("EtaLogitsWarper", (0.1,)),
    "top_h": ("TopHLogitsWarper", (0.5,)),
    "renormalized": ("LogitNormalization", ()),
}


def processor_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Ids [3, 12] and scores [3, 40]."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 10, (3, 12))
    ids[0, -2:] = (1, 2)
    ids[1, -1] = 4
    return ids, (rng.standard_normal((3, 40)) * 2).astype(np.float32)


def _record_processors() -> dict[str, np.ndarray]:
    import torch
    from transformers.generation import logits_process

    ids, scores = processor_inputs()
    found = {}
    for name, (kind, arguments) in PROCESSORS.items():
        process = getattr(logits_process, kind)(*arguments)
        own = scores.copy()
        if name == "invalid":
            own[0, :3] = (np.nan, np.inf, -np.inf)
        found[name] = process(torch.tensor(ids), torch.tensor(own)).numpy()
    return found


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    models = {model_type: _record_model(model_type) for model_type in MODELS}
    (FOLDER / "tokens.json").write_text(json.dumps(models, separators=(",", ":")) + "\n")
    np.savez_compressed(FOLDER / "processors.npz", **_record_processors())


if __name__ == "__main__":
    main()
