# SPDX-License-Identifier: Apache-2.0
"""Open a model's folder with ``transformers`` and generate: what a user of the hub would do first.

    python tools/check_with_transformers.py FOLDER [--prompt TEXT] [--save FILE.npz]

Needs ``transformers`` and torch, and nothing of this project. Prints one JSON object; with
``--save`` the ids, logits and generated ids are kept for a comparison.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.toolkit.launch.command import Parser, user_errors


def check(folder: Path, prompt: str, new_tokens: int, save: Path | None) -> dict[str, Any]:
    """Load tokenizer and model, encode, compute, generate.

    Args:
        folder: the model.
        prompt: what is continued.
        new_tokens: at most so many.
        save: where ids, logits and generated ids are kept.

    Returns:
        What was loaded and generated.
    """
    transformers, torch = (importlib.import_module(name) for name in ("transformers", "torch"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    batch = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"]).logits
        tokens = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)
    if save is not None:
        arrays = {"ids": batch["input_ids"], "logits": logits.float(), "tokens": tokens}
        np.savez(save, **{name: value.numpy() for name, value in arrays.items()})
    return {
        "model": type(model).__name__,
        "tokenizer": type(tokenizer).__name__,
        "vocabulary": model.config.vocab_size,
        "tokens of the tokenizer": len(tokenizer),
        "missing": sorted(loading["missing_keys"]),
        "unexpected": sorted(loading["unexpected_keys"]),
        "eos_token_id": model.generation_config.eos_token_id,
        "ids": batch["input_ids"][0].tolist(),
        "generated": tokenizer.decode(tokens[0]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; return 1 if tensors are missing or left over."""
    parser = Parser.of(__doc__)
    parser.add_argument("folder", type=Path, help="what save_pretrained has written")
    parser.add_argument("--prompt", default="The lamp is", help="what is continued")
    parser.add_argument("--new-tokens", type=int, default=8, help="at most so many are generated")
    parser.add_argument("--save", type=Path, help="keep ids, logits and generated ids, .npz")
    given = parser.parse_args(argv)
    with user_errors():
        result = check(given.folder, given.prompt, given.new_tokens, given.save)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return int(bool(result["missing"] or result["unexpected"]))


if __name__ == "__main__":
    raise SystemExit(main())
