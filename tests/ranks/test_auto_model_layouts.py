# SPDX-License-Identifier: Apache-2.0
"""A model by name is the same in every layout: logits, loss, and what is saved."""

from pathlib import Path

import hf_models
import numpy as np
import pytest

from mindspeed_ms import AutoModelForCausalLM
from mindspeed_ms.backend import comm

LAYOUTS = {
    "tp2": {"tensor_parallel": 2},
    "tp2-sp": {"tensor_parallel": 2, "sequence_parallel": True},
    "pp2": {"pipeline_parallel": 2},
    "ep2": {"expert_parallel": 2},
}
CASES = [
    ("gpt2", "tp2"),
    ("llama", "tp2-sp"),
    ("llama_tied", "pp2"),
    ("qwen3", "tp2"),
    ("mixtral", "tp2"),
    ("mixtral", "ep2"),
    ("mixtral", "pp2"),
    ("pangu", "tp2-sp"),
    ("pangu", "pp2"),
]


def compute(source, saved, layout):
    model = AutoModelForCausalLM.from_pretrained(source, **layout)
    ids = hf_models.IDS[:, :11]  # no multiple of the tensor ranks
    labels = np.where(ids % 5 == 0, -100, ids)
    held = sum(int(np.prod(param.shape)) for param in model.get_parameters())
    model.save_pretrained(saved)
    comm.barrier()
    sizes = (held, model.num_parameters(), model.bytes_read)
    return model(ids).asnumpy(), float(model(ids, labels=labels)), sizes


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_every_layout_computes_and_saves_the_same(kind, layout, dist_run, tmp_path, request):
    source, saved = tmp_path / "source", tmp_path / "saved"
    hf_models.write(source, kind)
    alone = AutoModelForCausalLM.from_pretrained(source)(hf_models.IDS[:, :11]).asnumpy()
    results = dist_run(
        compute, ranks=2, source=str(source), saved=str(saved), layout=LAYOUTS[layout]
    )
    expected = np.load(request.config.rootpath / "tests" / "data" / "models" / "expected.npz")
    for logits, loss, (held, total, bytes_read) in results:
        if kind in hf_models.CONFIGS:  # else its formula is a test of its own
            np.testing.assert_allclose(logits, expected[f"{kind}.logits"][:, :11], atol=2e-5)
        np.testing.assert_allclose(logits, alone, atol=2e-5)
        assert loss == pytest.approx(results[0][1], abs=1e-6)
        assert held < 0.8 * total
        # Its own part; of a matrix that is split by columns the whole rows pass by.
        assert 4 * held <= bytes_read < (4 * total if kind == "gpt2" else 0.85 * 4 * total)
    assert (saved / "config.json").read_text() == (source / "config.json").read_text()
    assert _tensors(saved) == _tensors(source)


def _tensors(folder: Path):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    return {
        name: (array.shape, array.tobytes())
        for name, array in load_file(folder / "model.safetensors").items()
    }
