# SPDX-License-Identifier: Apache-2.0
"""Converting and loading hold a few tensors at a time, however many a model has."""

import tracemalloc

import hf_models
import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms import AutoModelForCausalLM
from mindspeed_ms.core.dist_checkpointing import loader
from mindspeed_ms.training.conversion import ConvertOptions, convert

WORKERS = 2
"""One reads while the other writes, or two read."""
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
FUSED = 2 * 688 * 256 * 4
"""Bytes of the largest tensor: gate and up projection, which are one here."""
OTHERS = 1_500_000
"""Catalogs, headers, chunks in which numbers are converted."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    hf_models.write(folder, "llama", **SIZES)
    return folder


def held(work):
    """The most bytes that Python and NumPy hold while it works, beside what there was."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "options",
    [
        ConvertOptions(),
        ConvertOptions(to="megatron", tensor=2),
        ConvertOptions(to="mindspore"),
        ConvertOptions(to="huggingface", dtype="BF16"),
    ],
    ids=lambda options: options.to,
)
def test_a_conversion_holds_a_few_tensors(options, source, tmp_path):
    convert(source, tmp_path / "warm", options)  # modules and tables that stay
    most = held(lambda: convert(source, tmp_path / "out", options))
    size = (source / "model.safetensors").stat().st_size
    assert size > 10 * FUSED
    assert most < 1.5 * FUSED * WORKERS + OTHERS


def test_loading_holds_a_few_tensors_beside_the_model(source, monkeypatch):
    most = {}
    real = loader.load_tensors

    def watched(*args):
        most["beside"] = held(lambda: most.setdefault("report", real(*args)))
        return most["report"]

    monkeypatch.setattr("mindspeed_ms.toolkit.models.building.load_tensors", watched)
    model = AutoModelForCausalLM.from_pretrained(source)
    assert most["beside"] < 1.5 * FUSED * WORKERS + OTHERS
    values = sum(np.prod(param.shape) for param in model.get_parameters())
    assert most["report"].num_bytes == 4 * values == model.bytes_read
    assert {param.dtype for param in model.get_parameters()} == {ms.float32}
