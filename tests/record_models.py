# SPDX-License-Identifier: Apache-2.0
"""Record what ``transformers`` computes with the folders of ``hf_models.py``.

``PYTHONPATH=. python tests/record_models.py`` writes ``tests/data/models/expected.npz``; it needs
``transformers`` 5.24 and torch.
"""

import tempfile
from pathlib import Path

import hf_models
import numpy as np
import torch
from transformers import AutoModelForCausalLM

found = {}
for kind in hf_models.CONFIGS:
    with tempfile.TemporaryDirectory() as folder:
        hf_models.write(Path(folder), kind)
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        ids, mask = torch.tensor(hf_models.IDS), torch.tensor(hf_models.LEFT_PADDED)
        labels = torch.where(ids % 5 == 0, -100, ids)
        with torch.no_grad():
            result = model(ids, labels=labels)
            positions = (mask.cumsum(-1) - 1).clip(0)
            padded = model(ids, attention_mask=mask, position_ids=positions)
            tokens = model.generate(
                ids[:, :4], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        found[f"{kind}.logits"] = result.logits.numpy()
        found[f"{kind}.loss"] = result.loss.numpy()
        found[f"{kind}.padded"] = padded.logits.numpy()
        found[f"{kind}.tokens"] = tokens.numpy()
path = Path(__file__).parent / "data" / "models" / "expected.npz"
path.parent.mkdir(exist_ok=True)
np.savez_compressed(path, **found)
