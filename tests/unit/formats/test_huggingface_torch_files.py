# SPDX-License-Identifier: Apache-2.0
"""Folders whose weights are in ``torch.save`` files, as all were before safetensors."""

import json

import family_cases
import numpy as np
import pytest
from safetensors.numpy import load_file

from mindspeed_ms.formats.containers import torch_writer
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.training.checkpoint_config import spec_of
from mindspeed_ms.training.conversion import ConvertOptions, convert


def as_tensor(array):
    return torch_writer.TensorSpec("F32", array.shape, lambda: iter([array]))


def save(path, tensors, **more):
    torch_writer.write_file(path, {key: as_tensor(array) for key, array in tensors.items()} | more)


def old_folder(case, folder, count, **more):
    """A folder with its tensors in ``pytorch_model`` files; return the tensors."""
    family_cases.write_folder(case, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if count == 1:
        save(folder / "pytorch_model.bin", tensors, **more)
        return tensors
    weight_map = {}
    for number in range(count):
        name = f"pytorch_model-{number + 1:05d}-of-{count:05d}.bin"
        part = {key: tensors[key] for key in sorted(tensors)[number::count]}
        save(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return tensors


@pytest.mark.parametrize(("case", "count"), [("gpt_neox", 1), ("gpt2", 3)])
def test_tensors_are_those_of_the_files(case, count, tmp_path):
    tensors = old_folder(case, tmp_path / "old", count)
    convert(tmp_path / "old", tmp_path / "new", ConvertOptions(to="huggingface"))
    written = load_file(tmp_path / "new" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for key, array in tensors.items():
        assert np.array_equal(array.view(np.uint32), written[key].view(np.uint32)), key


def opened(folder):
    return open_checkpoint(find_checkpoint(folder), spec_of)


def test_safetensors_are_preferred(tmp_path):
    old_folder("gpt2", tmp_path, 1)
    family_cases.write_folder("gpt2", tmp_path)
    paths = {piece.path.name for t in opened(tmp_path).tensors.values() for piece in t.pieces}
    assert paths == {"model.safetensors"}


def test_what_is_no_state_dict_is_refused(tmp_path):
    old_folder("gpt2", tmp_path, 1, epoch=3)
    with pytest.raises(ValueError, match="epoch is no tensor; save the state dict alone"):
        opened(tmp_path)


def test_a_changed_byte_and_a_lost_file_are_told(tmp_path):
    old_folder("gpt2", tmp_path / "a", 2)
    (tmp_path / "a" / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ValueError, match="pytorch_model-00002-of-00002.bin, which pytorch_model"):
        opened(tmp_path / "a")
    old_folder("gpt2", tmp_path / "b", 1)
    path = tmp_path / "b" / "pytorch_model.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="another checksum"):
        convert(tmp_path / "b", tmp_path / "new", ConvertOptions(to="huggingface"))
