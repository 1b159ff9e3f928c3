# SPDX-License-Identifier: Apache-2.0
"""GPT-2's torch weights to a MindSpore file: every number, every name, and what is refused."""

import json

import numpy as np
import pytest

from mindspeed_ms import AutoModel
from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers import torch_writer
from mindspeed_ms.formats.containers.torch_writer import TensorSpec
from mindspeed_ms.models.families.registry import family_of_type
from mindspeed_ms.toolkit import convert_weight
from mindspeed_ms.toolkit.models import auto_config
from mindspeed_ms.training.conversion import ConvertOptions, open_source

LAYERS, HIDDEN, ROWS, POSITIONS = 2, 128, 11, 6
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": ROWS,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": 2,
    "n_positions": POSITIONS,
    "activation_function": "gelu_new",
}


def links():
    family = family_of_type("gpt2")
    return list(family.places_of(family.config(CONFIG), ROWS))


def state(prefix="", **more):
    """Random tensors under Hugging Face's names."""
    generator = np.random.default_rng(3)
    tensors = {
        f"{prefix}{link.theirs}": generator.normal(size=link.shape).astype(np.float32)
        for link in links()
    }
    return {**tensors, **more}


def save(path, tensors):
    torch_writer.write_file(
        path,
        {
            name: TensorSpec.of(value) if isinstance(value, np.ndarray) else value
            for name, value in tensors.items()
        },
    )
    return str(path)


def words(source, target, layers=LAYERS):
    paths = ["--torch_path", str(source), "--mindspore_path", str(target)]
    return ["--layers", str(layers), *paths]


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_every_number_arrives_under_our_names(tmp_path, capsys, prefix):
    mask = np.ones((1, 1, POSITIONS, POSITIONS), np.float32)
    given = state(prefix, **{f"{prefix}h.0.attn.bias": mask})
    given["lm_head.weight"] = given[f"{prefix}wte.weight"]
    source = save(tmp_path / "pytorch_model.bin", given)
    target = tmp_path / "out" / "gpt2.ckpt"
    assert convert_weight.main(words(source, target)) == 0
    described = tmp_path / "config.json"
    described.write_text(json.dumps(CONFIG))
    catalog, _ = open_source(target, ConvertOptions(model_config=described))
    assert set(catalog.tensors) == {link.name for link in links()}
    with TensorReader() as reader:
        for link in links():
            found = reader.read(catalog.tensor(link.name))
            part = found.reshape(-1)[np.concatenate([np.arange(a, b) for a, b in runs(link)])]
            theirs = given[f"{prefix}{link.theirs}"]
            expected = theirs.T if link.is_transposed else theirs
            np.testing.assert_array_equal(part, expected.reshape(-1))
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"written: {target}" and len(out) == len(links()) + 1
    assert "wte.weight -> language_model.embedding.word_embeddings.weight [11, 128]" in out
    assert [path.name for path in target.parent.iterdir()] == ["gpt2.ckpt"]


def runs(link):
    """Flat ranges of our tensor that a link holds, in the order of theirs."""
    shape = tuple(high for _, high in link.region.bounds)
    indices = np.arange(int(np.prod(shape))).reshape(shape)
    taken = indices[np.concatenate([np.arange(a, a + n) for a, n in rows_of(link, shape)])]
    return [(int(index), int(index) + 1) for index in taken.reshape(-1)]


def rows_of(link, shape):
    if ".qkv_proj." not in link.name:
        return [(0, shape[0])]
    width = HIDDEN // 2  # of a head; ours holds query, key, value of one head after the other
    return [((3 * head + kind) * width, width) for kind in range(3) for head in range(2)]


@pytest.mark.parametrize(
    ("change", "layers", "message"),
    [
        (lambda s: s, 3, "--layers is 3, but the file has 2 layers; give --layers 2"),
        (lambda s: {"a": s["wte.weight"]}, 2, "the file has no wte.weight and wpe.weight; only"),
        (lambda s: {**s, "epoch": 3}, 2, "epoch is no tensor"),
        (lambda s: {k: v for k, v in s.items() if "ln_f" not in k}, 2, "missing: ['ln_f.bias'"),
        (lambda s: {**s, "h.0.extra": s["wpe.weight"]}, 2, "unknown: ['h.0.extra']"),
        (lambda s: {}, 2, "holds no state dict"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, capsys, change, layers, message):
    source = save(tmp_path / "pytorch_model.bin", change(state()))
    with pytest.raises(SystemExit) as caught:
        convert_weight.main(words(source, tmp_path / "gpt2.ckpt", layers))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_paths_and_heads_that_do_not_fit(tmp_path, capsys):
    (tmp_path / "text.bin").write_text("no torch file")
    narrow = {"wte.weight": np.zeros((3, 48)), "wpe.weight": np.zeros((3, 48))}
    narrow = save(tmp_path / "narrow.bin", {k: v.astype(np.float32) for k, v in narrow.items()})
    for source, layers, message in (
        ("none.bin", 2, "--torch_path none.bin: there is no such file"),
        ("obs://bucket/x.bin", 2, "--torch_path: remote paths are not read"),
        (tmp_path / "text.bin", 2, "text.bin"),
        (narrow, 0, "48 is no multiple of 64; give --heads"),
    ):
        with pytest.raises(SystemExit):
            convert_weight.main(words(source, tmp_path / "gpt2.ckpt", layers))
        assert message in capsys.readouterr().err


def test_the_file_is_found_by_the_name_of_its_size(tmp_path, monkeypatch):
    given = state()
    source = save(tmp_path / "pytorch_model.bin", given)
    monkeypatch.chdir(tmp_path)
    target = "checkpoint_download/gpt2/gpt2_tiny.ckpt"
    assert convert_weight.main(words(source, target)) == 0
    hub = tmp_path / "hub"
    hub.mkdir()
    entries = [safetensors.Entry(name, "F32", a.shape, a) for name, a in given.items()]
    safetensors.write_file(hub / "model.safetensors", entries, {"format": "pt"})
    (hub / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr(auto_config, "presets", lambda: {"gpt2_tiny": CONFIG})
    ids = [[1, 2, 3, 10]]
    found = AutoModel.from_pretrained("gpt2_tiny")(ids).asnumpy()
    np.testing.assert_array_equal(found, AutoModel.from_pretrained(hub)(ids).asnumpy())
