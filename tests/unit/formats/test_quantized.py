# SPDX-License-Identifier: Apache-2.0
"""Weights in fp8 and mxfp4 are read as the numbers they stand for, or refused in one line."""

import json

import family_cases
import numpy as np
import pytest
from safetensors.numpy import load_file

from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.formats.huggingface import read_catalog
from mindspeed_ms.formats.quantized import FP8_VALUES, BlockScales, block_of, mxfp4
from mindspeed_ms.plan.region import Region, Span
from mindspeed_ms.training.conversion import ConvertOptions, convert

BLOCK = (5, 7)
FP8 = {"quant_method": "fp8", "weight_block_size": list(BLOCK)}


def test_bytes_stand_for_the_numbers_of_e4m3():
    known = {0x00: 0.0, 0x01: 2**-9, 0x07: 7 * 2**-9, 0x08: 2**-6, 0x38: 1.0, 0x7E: 448.0}
    for byte, number in known.items():
        assert FP8_VALUES[byte] == number
        assert FP8_VALUES[byte | 0x80] == -number
    assert np.isnan(FP8_VALUES[[0x7F, 0xFF]]).all()
    assert np.isfinite(FP8_VALUES).sum() == 254


def scaled(stored, factors):
    """The whole matrix by its definition."""
    rows, columns = (np.arange(size) // one for size, one in zip(stored.shape, BLOCK, strict=True))
    return FP8_VALUES[stored] * factors[rows][:, columns]


def test_any_stretch_of_a_matrix_is_decoded_as_in_the_whole():
    draw = np.random.RandomState(0)
    stored = draw.randint(0, 127, (13, 17)).astype(np.uint8)
    factors = draw.rand(3, 3).astype(np.float32)
    whole, scales = scaled(stored, factors), BlockScales(17, BLOCK, lambda: factors)
    for first, count in [(0, 221), (17, 34), (85, 17), (3, 5), (3, 100), (80, 141), (220, 1)]:
        found = scales.decoded(stored.reshape(-1)[first : first + count], first)
        assert np.array_equal(found, whole.reshape(-1)[first : first + count])


def test_halves_of_bytes_are_numbers_of_e2m1_times_a_power_of_two():
    blocks = np.zeros((2, 1, 16), np.uint8)
    blocks[0, 0, :3], blocks[1, 0, 15] = [0x21, 0xF7, 0x98], 0x5C
    found = mxfp4(blocks, np.array([[127], [130]], np.uint8))
    assert found.shape == (2, 32)
    assert found[0, :6].tolist() == [0.5, 1.0, 6.0, -6.0, -0.0, -0.5]
    assert found[1, 30:].tolist() == [-16.0, 24.0]
    assert not found[0, 6:].any()


def write_fp8(folder):
    """A folder of Llama whose projections are in fp8; return the numbers they stand for."""
    told = family_cases.write_folder("llama", folder)
    config = {**told["config"], "dtype": "float32", "quantization_config": FP8}
    (folder / "config.json").write_text(json.dumps(config))
    draw, tensors = np.random.RandomState(1), load_file(folder / "model.safetensors")
    meant, header, data = {}, {"__metadata__": {"format": "pt"}}, b""
    for key, array in list(tensors.items()):
        meant[key] = array
        if key.endswith("_proj.weight"):
            grid = [-(-size // one) for size, one in zip(array.shape, BLOCK, strict=True)]
            stored = draw.randint(0, 120, array.shape).astype(np.uint8)
            factors = (draw.rand(*grid) / 500).astype(np.float32)
            meant[key] = scaled(stored, factors)
            tensors[key], tensors[f"{key}_scale_inv"] = stored, factors
    for key, array in tensors.items():  # the library's numpy form knows no fp8
        kind = "F8_E4M3" if array.dtype == np.uint8 else "F32"
        offsets = [len(data), len(data) + array.nbytes]
        header[key] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    file = len(text).to_bytes(8, "little") + text + data
    (folder / "model.safetensors").write_bytes(file)
    return meant


def test_a_folder_in_fp8_becomes_plain(tmp_path):
    meant = write_fp8(tmp_path / "theirs")
    report = convert(tmp_path / "theirs", tmp_path / "plain", ConvertOptions(to="huggingface"))
    assert "14 matrices in fp8 become float32" in report.notes
    found = load_file(tmp_path / "plain" / "model.safetensors")
    assert found.keys() == meant.keys()
    for key, array in meant.items():
        assert np.array_equal(found[key], array), key
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())


def test_a_rank_reads_its_part_of_a_matrix_in_fp8(tmp_path):
    write_fp8(tmp_path)
    catalog = read_catalog(tmp_path)
    with TensorReader() as reader:
        for name, tensor in catalog.tensors.items():
            whole = reader.read(tensor)
            for dim in range(len(tensor.shape)):
                low = tensor.shape[dim] // 2
                region = Region.whole(tensor.shape).with_runs(dim, [(low, tensor.shape[dim] - low)])
                part = reader.read_span(tensor, Span.all_of(region)).reshape(region.shape)
                assert np.array_equal(part, np.take(whole, range(low, tensor.shape[dim]), dim)), (
                    name
                )


@pytest.mark.parametrize(
    "given",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "fp8"},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
    ],
)
def test_other_weights_are_refused_with_the_way_out(tmp_path, given):
    told = family_cases.write_folder("llama", tmp_path)
    config = {**told["config"], "quantization_config": given}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"config.json: the weights are quantized .*dequantize\(\)"
    ):
        read_catalog(tmp_path)


def test_plain_weights_are_what_they_are_and_lost_factors_an_error(tmp_path):
    assert block_of(None) is None
    assert block_of({"quant_method": "fp8", "weight_block_size": [128, 128]}) == (128, 128)
    write_fp8(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="stored in fp8 without the factors of its blocks"):
        read_catalog(tmp_path)
