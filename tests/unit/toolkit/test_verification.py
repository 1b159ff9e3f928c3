# SPDX-License-Identifier: Apache-2.0
"""A conversion is checked: both sides compute the same, and every tensor was written."""

import json
import subprocess
import sys
from pathlib import Path

import hf_models
import numpy as np
import pytest

from mindspeed_ms.models.families.llama import FAMILY
from mindspeed_ms.toolkit import verification
from mindspeed_ms.training import conversion
from mindspeed_ms.training.conversion import ConvertOptions, convert

ROOT = Path(__file__).parents[3]


@pytest.fixture
def source(tmp_path):
    hf_models.write(tmp_path / "source", "llama", num_hidden_layers=5)
    return tmp_path / "source"


def check(source, target, capsys):
    given = {"source": str(source), "target": str(target)}
    status = verification.main([json.dumps(given)])
    out, err = capsys.readouterr()
    return status, out + err


def changed(folder, name, change):
    """Change a tensor in a hub's folder."""
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = numpy.load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "mistral"])
def test_sides_that_compute_the_same(kind, tmp_path, capsys):
    hf_models.write(tmp_path / "source", kind)
    convert(tmp_path / "source", tmp_path / "run", ConvertOptions(to="megatron", tensor=2))
    status, text = check(tmp_path / "source", tmp_path / "run", capsys)
    assert status == 0
    assert text.startswith("verified: logits of 12 tokens through every layer differ by 0 at most")


def test_rounding_is_allowed_and_told(source, tmp_path, capsys):
    convert(source, tmp_path / "half", ConvertOptions(dtype="BF16"))
    status, text = check(source, tmp_path / "half", capsys)
    assert status == 0 and "differ by 0 at most" not in text


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.layers.3.self_attn.q_proj.weight", lambda q: q[::-1].copy()),
        ("model.layers.0.input_layernorm.weight", lambda w: w * 1.001),
        ("lm_head.weight", lambda w: np.roll(w, 1, 0)),
    ],
)
def test_a_side_that_computes_otherwise(name, change, source, tmp_path, capsys):
    convert(source, tmp_path / "hub", ConvertOptions(to="huggingface"))
    changed(tmp_path / "hub", name, change)
    status, text = check(source, tmp_path / "hub", capsys)
    assert status == 1
    assert "the result computes otherwise than its source: logits of 12 tokens" in text


def test_another_description_is_noticed(source, tmp_path, capsys):
    convert(source, tmp_path / "hub", ConvertOptions(to="huggingface"))
    path = tmp_path / "hub" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 500.0}))
    assert check(source, tmp_path / "hub", capsys)[0] == 1


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_of_a_large_model_some_layers_are_computed(layer, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verification, "MOST_BYTES", 1)
    convert(source, tmp_path / "hub", ConvertOptions(to="huggingface"))
    status, text = check(source, tmp_path / "hub", capsys)
    assert status == 0 and "through layers [0, 2, 4]" in text
    changed(tmp_path / "hub", f"model.layers.{layer}.mlp.up_proj.weight", lambda w: -w)
    assert check(source, tmp_path / "hub", capsys)[0] == 1


def test_layers_of_several_kinds_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "MOST_BYTES", 1)
    hf_models.write(
        tmp_path / "qwen",
        "qwen2",
        num_hidden_layers=5,
        use_sliding_window=True,
        sliding_window=3,
        max_window_layers=3,
    )
    side = verification.open_side(tmp_path / "qwen", ConvertOptions())
    thin = verification.thinned(side, verification.chosen_layers(side))
    model = thin.config.model_config
    assert [model.has_window(layer) for layer in range(3)] == [False, False, True]


def test_a_tensor_that_was_not_written_is_an_error(source, tmp_path, monkeypatch):
    places = FAMILY.places

    def without_one(spec):
        return (
            place for place in places(spec) if not place.theirs.endswith("3.mlp.up_proj.weight")
        )

    real = conversion.huggingface.write

    def write(source, config, family, *rest, **named):
        object.__setattr__(family, "places", without_one)
        try:
            return real(source, config, family, *rest, **named)
        finally:
            object.__setattr__(family, "places", places)

    monkeypatch.setattr(conversion.huggingface, "write", write)
    with pytest.raises(ValueError, match=r"lacks .*layers\.3\.mlp\.mapping.*do not use it"):
        convert(source, tmp_path / "hub", ConvertOptions(to="huggingface"))


def test_keys_that_nothing_speaks_for_are_named(source, tmp_path):
    report = convert(source, tmp_path / "own", ConvertOptions())
    assert "config.json: kept, not understood: some_unknown_key" in report.notes


def test_the_command_verifies_unless_told_otherwise(source, tmp_path):
    def tool(*words):
        command = [sys.executable, ROOT / "tools/convert_ckpt", "convert", *words]
        # Away from the tree: the tool finds the package that it belongs to.
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    done = tool(source, tmp_path / "own")
    assert done.returncode == 0, done.stderr
    assert "  verified: logits of 12 tokens" in done.stdout
    assert "verified" not in tool(source, tmp_path / "other", "--no-verify").stdout
