# SPDX-License-Identifier: Apache-2.0
"""Conversions: what goes out and comes back is bit for bit what it was, in every layout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.command.convert import layer_list, main
from mindspeed_ms.formats import names
from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.formats.compare import diff
from mindspeed_ms.formats.containers import torch_file
from mindspeed_ms.training import conversion as engine
from mindspeed_ms.training.checkpoint_args import sections_from_checkpoint
from mindspeed_ms.training.checkpoint_config import config_of, spec_of
from mindspeed_ms.training.conversion import ConvertOptions, convert, open_source

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "data" / "golden" / "ckpt"


def opened(path):
    return open_source(path, ConvertOptions())[0]


def differences(first, second, weights_only=False):
    found = diff(opened(first), opened(second))
    return [item for item in found if not (weights_only and item.name.startswith("exp_avg"))]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Golden checkpoints in this project's format."""
    folder = tmp_path_factory.mktemp("own")
    cases = ("a_gpt2_save", "e_llama_dp2_distopt_save", "g_moe", "l_llama_legacy_tp2")
    for case in cases:
        convert(GOLDEN / case, folder / case, ConvertOptions())
        assert differences(GOLDEN / case, folder / case) == []
    return folder


def test_nothing_is_converted_into_the_folder_of_a_run(tmp_path):
    (tmp_path / "run_record.jsonl").write_text("{}\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="folder that a run saves to.*folder of its own"):
        convert(GOLDEN / "a_gpt2_save", tmp_path, ConvertOptions())
    assert sorted(tmp_path.rglob("*")) == before


LAYOUTS = {
    "tp2": {"tensor": 2},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "interleaved": {"pipeline": 2, "virtual_pipeline": 2},
    "distributed-optimizer": {
        "tensor": 2,
        "pipeline": 2,
        "distributed_optimizer": True,
        "data_parallel": 2,
    },
    "interleaved-distributed": {
        "pipeline": 2,
        "virtual_pipeline": 2,
        "distributed_optimizer": True,
        "data_parallel": 4,
    },
    "numbered-optimizer": {"pipeline": 4, "distributed_optimizer": False},
    "uneven-te-names": {"pipeline": 2, "num_layer_list": (1, 3), "naming": "te"},
    "legacy-names": {"tensor": 2, "pipeline": 2, "naming": "legacy"},
}


@pytest.mark.parametrize("case", ["a_gpt2_save", "e_llama_dp2_distopt_save", "g_moe"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_megatron_and_back_is_bit_identical(tmp_path, own, case, layout):
    options = dict(LAYOUTS[layout])
    if case == "g_moe":
        if layout == "legacy-names":
            pytest.skip("the older model had no such experts")
        options["expert"] = 2
    convert(own / case, tmp_path / "megatron", ConvertOptions(to="megatron", **options))
    assert differences(GOLDEN / case, tmp_path / "megatron") == []
    convert(tmp_path / "megatron", tmp_path / "back", ConvertOptions())
    assert differences(own / case, tmp_path / "back") == []


def test_overlapped_buckets_and_many_ranks(tmp_path, own):
    source = own / "e_llama_dp2_distopt_save"
    options = ConvertOptions(
        to="megatron",
        distributed_optimizer=True,
        data_parallel=3,
        arguments={"overlap_grad_reduce": True, "ddp_bucket_size": 30000},
    )
    convert(source, tmp_path / "m", options)
    assert differences(GOLDEN / "e_llama_dp2_distopt_save", tmp_path / "m") == []


def _content(root, case, name):
    (path,) = (root / case).glob(f"iter_*/mp_rank_00/{name}")
    return torch_file.TorchFile(path)


def _outline(value):
    """Names, order and shapes of a file's objects."""
    if isinstance(value, dict):
        return [(str(key), _outline(item)) for key, item in value.items()]
    if isinstance(value, torch_file.TensorRef):
        return value.storage.dtype, value.shape
    return value if isinstance(value, (int, float, str, bool, tuple)) else type(value).__name__


@pytest.mark.parametrize("case", ["a_gpt2_save", "e_llama_dp2_distopt_save"])
def test_written_files_are_built_as_megatrons_own(tmp_path, own, case):
    convert(own / case, tmp_path / case, ConvertOptions(to="megatron", data_parallel=2))
    theirs = _content(GOLDEN, case, "model_optim_rng.pt").content
    ours = _content(tmp_path, case, "model_optim_rng.pt").content
    assert _outline(ours["model"]) == _outline(theirs["model"])
    for key in ("optimizer", "opt_param_scheduler"):
        # The learning rate of the moment is set again by the scheduler.
        left = json.loads(json.dumps(_outline(ours[key]), default=str))
        right = json.loads(json.dumps(_outline(theirs[key]), default=str))
        assert _without_rates(left) == _without_rates(right)
    assert ours["iteration"] == 10 and ours["args"].consumed_train_samples == 80
    assert str(ours["args"].params_dtype) == "torch.float32"
    assert ours["rng_state"][0].keys() == theirs["rng_state"][0].keys()
    shape = ours["rng_state"][0]["torch_rng_state"].shape
    assert shape == theirs["rng_state"][0]["torch_rng_state"].shape
    if case.startswith("e_"):
        flat = _content(tmp_path, case, "distrib_optim.pt")
        expected = _content(GOLDEN, case, "distrib_optim.pt")
        assert _outline(flat.content) == _outline(expected.content)
        (mine,), (other,) = flat.content[0].values(), expected.content[0].values()
        for kind in ("param", "exp_avg", "exp_avg_sq"):
            np.testing.assert_array_equal(flat.numbers(mine[kind]), expected.numbers(other[kind]))


def _without_rates(outline):
    if isinstance(outline, list):
        pairs = [item for item in outline if not (isinstance(item, list) and item[:1] == ["lr"])]
        return [_without_rates(item) for item in pairs]
    return outline


def test_torch_loads_what_is_written(tmp_path, own):
    torch = pytest.importorskip("torch")
    convert(own / "a_gpt2_save", tmp_path, ConvertOptions(to="megatron", tensor=2))
    path = tmp_path / "iter_0000010" / "mp_rank_01" / "model_optim_rng.pt"
    loaded = torch.load(path, weights_only=False)
    assert loaded["model"]["decoder.layers.0.mlp.linear_fc1.weight"].shape == (128, 64)
    assert loaded["args"].tensor_model_parallel_size == 2
    generator = torch.Generator()
    generator.set_state(loaded["rng_state"][0]["torch_rng_state"])
    expected = torch.Generator().manual_seed(1234)
    assert torch.equal(generator.get_state(), expected.get_state())


@pytest.mark.parametrize("case", ["a_gpt2_save", "e_llama_dp2_distopt_save", "g_moe"])
def test_hugging_face_and_back(tmp_path, own, case):
    convert(own / case, tmp_path / "hf", ConvertOptions(to="huggingface"))
    convert(tmp_path / "hf", tmp_path / "m", ConvertOptions(to="megatron", tensor=2))
    assert differences(own / case, tmp_path / "m", weights_only=True) == []
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = {"a_gpt2_save": "gpt2", "g_moe": "mixtral"}.get(case, "llama")
    assert config["model_type"] == expected


def test_stretched_rotations_keep_their_factor(tmp_path, own):
    """Llama 3.1's ``rope_scaling`` comes through our format and Megatron's; other forms do not."""
    convert(own / "e_llama_dp2_distopt_save", tmp_path / "hf", ConvertOptions(to="huggingface"))
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    assert "rope_scaling" not in config
    stretch = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0}
    stretch |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    path.write_text(json.dumps({**config, "rope_scaling": stretch}))
    convert(tmp_path / "hf", tmp_path / "megatron", ConvertOptions(to="megatron"))
    arguments = opened(tmp_path / "megatron").common["megatron_args"]
    assert (arguments["use_rope_scaling"], arguments["rope_scaling_factor"]) == (True, 4.0)
    sections = sections_from_checkpoint(str(tmp_path / "megatron"), None)
    assert sections["model_config"]["rope_scaling_factor"] == 4.0
    convert(tmp_path / "megatron", tmp_path / "own", ConvertOptions())
    convert(tmp_path / "own", tmp_path / "back", ConvertOptions(to="huggingface"))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["rope_scaling"] == stretch
    path.write_text(json.dumps({**config, "rope_scaling": {"type": "longrope", "factor": 2.0}}))
    with pytest.raises(ValueError, match="needs short_factor and long_factor"):
        convert(tmp_path / "hf", tmp_path / "no", ConvertOptions())


def _reference_qkv(weight, heads, groups, dim):
    """Query, key and value apart, by reshaping."""
    per_group = heads // groups
    rows = weight.reshape(groups, per_group + 2, dim, -1)
    return [
        rows[:, :per_group].reshape(heads * dim, -1),
        rows[:, per_group].reshape(groups * dim, -1),
        rows[:, per_group + 1].reshape(groups * dim, -1),
    ]


def test_hugging_face_tensors_are_the_right_rows(tmp_path, own):
    library = pytest.importorskip("safetensors.numpy")
    for case in ("a_gpt2_save", "e_llama_dp2_distopt_save"):
        convert(own / case, tmp_path / case, ConvertOptions(to="huggingface"))
    llama = library.load_file(tmp_path / "e_llama_dp2_distopt_save" / "model.safetensors")
    catalog = opened(own / "e_llama_dp2_distopt_save")
    layer = "language_model.encoder.layers.2"
    with TensorReader() as reader:
        qkv = reader.read(catalog.tensors[f"{layer}.attention.qkv_proj.weight"])
        mapping = reader.read(catalog.tensors[f"{layer}.mlp.mapping.weight"])
        gpt = opened(own / "a_gpt2_save")
        gpt_qkv = reader.read(gpt.tensors[f"{layer}.attention.qkv_proj.weight"])
        gpt_fc = reader.read(gpt.tensors[f"{layer}.mlp.mapping.weight"])
    for kind, expected in zip("qkv", _reference_qkv(qkv, 4, 2, 16), strict=True):
        found = llama[f"model.layers.2.self_attn.{kind}_proj.weight"]
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(llama["model.layers.2.mlp.gate_proj.weight"], mapping[:176])
    np.testing.assert_array_equal(llama["model.layers.2.mlp.up_proj.weight"], mapping[176:])
    gpt2 = library.load_file(tmp_path / "a_gpt2_save" / "model.safetensors")
    together = np.concatenate(_reference_qkv(gpt_qkv, 4, 4, 16))
    np.testing.assert_array_equal(gpt2["transformer.h.2.attn.c_attn.weight"], together.T)
    np.testing.assert_array_equal(gpt2["transformer.h.2.mlp.c_fc.weight"], gpt_fc.T)


@pytest.mark.parametrize("container", ["ckpt", "safetensors"])
def test_mindspore_folders_and_back(tmp_path, own, container):
    for case in ("a_gpt2_save", "e_llama_dp2_distopt_save"):
        options = ConvertOptions(
            to="mindspore", tensor=2, pipeline=2, data_parallel=2, container=container
        )
        convert(own / case, tmp_path / case, options)
        folders = sorted(item.name for item in (tmp_path / case).glob("rank_*"))
        assert folders == ["rank_0", "rank_1", "rank_4", "rank_5"]
        assert differences(own / case, tmp_path / case) == []


def test_vocabularies_are_trimmed_and_padded(tmp_path, own):
    source = own / "e_llama_dp2_distopt_save"
    options = {"vocab_size": 504, "make_vocab_size_divisible_by": 200}
    convert(source, tmp_path / "m", ConvertOptions(to="megatron", tensor=2, **options))
    before, after = opened(source), opened(tmp_path / "m")
    with TensorReader() as reader:
        for name in (names.EMBEDDING, names.HEAD):
            old, new = reader.read(before.tensors[name]), reader.read(after.tensors[name])
            assert new.shape == (800, 64)
            np.testing.assert_array_equal(new[:512], old)
            assert (new[512:] == old[-1]).all()
            moment = reader.read(after.tensors[f"exp_avg.{name}"])
            assert not moment[512:].any()
    convert(source, tmp_path / "hf", ConvertOptions(to="huggingface", vocab_size=504))
    assert opened(tmp_path / "hf").tensors[names.EMBEDDING].shape == (504, 64)


def test_types_are_converted_on_the_way(tmp_path, own):
    source = own / "e_llama_dp2_distopt_save"
    options = ConvertOptions(to="megatron", dtype="BF16", distributed_optimizer=False)
    convert(source, tmp_path / "half", options)
    half = opened(tmp_path / "half")
    assert half.tensors[names.EMBEDDING].dtype == "BF16"
    assert half.tensors[f"main.{names.EMBEDDING}"].dtype == "F32"
    convert(tmp_path / "half", tmp_path / "half2", ConvertOptions(to="megatron", tensor=2))
    assert differences(tmp_path / "half", tmp_path / "half2") == []
    with TensorReader() as reader:  # fp32 weights were not rounded
        main_weights = reader.read(half.tensors[f"main.{names.EMBEDDING}"])
        exact = reader.read(opened(source).tensors[names.EMBEDDING])
    np.testing.assert_array_equal(main_weights, exact)


@pytest.mark.parametrize(("word", "kind"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_hub_model_is_described_in_the_type_of_its_weights(tmp_path, own, word, kind):
    source = own / "e_llama_dp2_distopt_save"
    types = {"dtype": {"bf16": "BF16", "fp16": "F16"}[word], "with_optimizer": False}
    convert(source, tmp_path / "hub", ConvertOptions(to="huggingface", **types))
    convert(tmp_path / "hub", tmp_path / "again", ConvertOptions())
    convert(source, tmp_path / "cast", ConvertOptions(**types))
    convert(tmp_path / "cast", tmp_path / "wide", ConvertOptions(dtype="F32"))
    for name, expected in (("again", kind), ("cast", kind), ("wide", "float32")):
        model = config_of(opened(tmp_path / name).common).model_config
        assert (model.params_dtype, model.compute_dtype) == (expected, expected), name
    kept = config_of(opened(source).common).model_config
    convert(source, tmp_path / "same", ConvertOptions())
    assert config_of(opened(tmp_path / "same").common).model_config == kept


def test_weights_of_mixed_types_lose_nothing(tmp_path, own):
    """Embeddings in fp32 beside layers in bf16: Megatron has one type, and exact main weights."""
    half = tmp_path / "half"
    convert(own / "e_llama_dp2_distopt_save", half, ConvertOptions(dtype="BF16"))
    catalog = opened(half)
    exact = opened(own / "e_llama_dp2_distopt_save").tensors
    for name in list(catalog.tensors):
        if name in (names.EMBEDDING, names.HEAD):
            catalog.tensors[name] = exact[name]
            del catalog.tensors[f"main.{name}"]
    for flags in ({"distributed_optimizer": True}, {"distributed_optimizer": False}):
        target = tmp_path / str(flags["distributed_optimizer"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                engine, "open_source", lambda path, options: (catalog, config_of(catalog.common))
            )
            convert(half, target, ConvertOptions(to="megatron", tensor=2, **flags))
        written = opened(target)
        assert {
            t.dtype for n, t in written.tensors.items() if "." in n and n.startswith("lang")
        } == {"BF16"}
        with TensorReader() as reader:
            for name in exact:
                if name.startswith("language_model"):
                    main_weights = reader.read(written.tensors[f"main.{name}"])
                    np.testing.assert_array_equal(main_weights, reader.read(exact[name]))


def test_command_line(tmp_path, capsys, refused):
    source = str(GOLDEN / "g_moe")
    target = str(tmp_path / "out")
    flags = ["--to", "megatron", "--pipeline-model-parallel-size", "2", "--num-layer-list", "1,3"]
    assert main(["convert", source, target, *flags, "--expert-model-parallel-size", "4"]) == 0
    assert main(["diff", source, target]) == 0
    assert "equal: 55 tensors" in capsys.readouterr().out
    assert main(["inspect", target, "--pieces"]) == 0
    out = capsys.readouterr().out
    assert "55 tensors" in out and "mp_rank_00_001_003" in out
    assert main(["diff", source, str(GOLDEN / "a_gpt2_save"), "--metadata-only"]) == 1
    assert "error: " in refused(main, ["inspect", str(tmp_path)])
    assert layer_list("4,4,6") == (4, 4, 6)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--tensor-model-parallel-size", "3"], "does not split into 3"),
        (["--pipeline-model-parallel-size", "3"], "must be divisible"),
        (["--num-layer-list", "3,3", "--pipeline-model-parallel-size", "2"], "6 layers"),
    ],
)
def test_impossible_layouts_are_one_line(tmp_path, refused, flags, part):
    source = str(GOLDEN / "e_llama_dp2_distopt_save")
    words = ["convert", source, str(tmp_path), "--to", "megatron", *flags]
    assert part in refused(main, words)


def test_missing_layers_are_named(tmp_path, own):
    catalog = opened(own / "g_moe")
    for name in list(catalog.tensors):
        if ".layers.2." in name or name.endswith("layers.1.input_norm.weight"):
            del catalog.tensors[name]
    with pytest.raises(ValueError, match=r"missing: .*layers.1.input_norm.weight.*layers.2"):
        engine._check_complete(catalog, spec_of(catalog.common))


def test_no_framework_is_imported(tmp_path):
    code = (
        "import sys, mindspeed_ms.command.convert as tool; "
        f"tool.main(['convert', {str(GOLDEN / 'a_gpt2_save')!r}, {str(tmp_path)!r}]); "
        "assert not {'mindspore', 'torch'} & sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
