# SPDX-License-Identifier: Apache-2.0
"""The next tensor is read while one is written: never into the memory that is being written."""

import family_cases
import numpy as np
import pytest
from safetensors.numpy import load_file

from mindspeed_ms.formats.containers import mindspore_file, safetensors_file, torch_writer
from mindspeed_ms.training.conversion import ConvertOptions, convert

_END = object()


def always_ahead(items):
    """What a slow writer sees: every item waits until the next one is there."""
    source = iter(items)
    item = next(source, _END)
    while item is not _END:
        following = next(source, _END)
        yield item
        item = following


@pytest.mark.parametrize("between", ["mindspeed_ms", "megatron", "mindspore"])
def test_a_slow_writer_gets_what_was_read(between, tmp_path, monkeypatch):
    for module in (safetensors_file, torch_writer, mindspore_file):
        monkeypatch.setattr(module, "one_ahead", always_ahead)
    family_cases.write_folder("gpt_oss", tmp_path / "theirs")
    back = ConvertOptions(to="huggingface", model_type="gpt_oss")
    convert(tmp_path / "theirs", tmp_path / "between", ConvertOptions(to=between))
    convert(tmp_path / "between", tmp_path / "back", back)
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert np.array_equal(array, after[key]), key
