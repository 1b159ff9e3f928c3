# SPDX-License-Identifier: Apache-2.0
"""Megatron's own checkpoint files: every tensor is found, and nothing in them is executed."""

import os
import pickle
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.config import MoEConfig, TransformerConfig
from mindspeed_ms.formats import names
from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.formats.compare import diff
from mindspeed_ms.formats.containers import safe_pickle, torch_file, zip_writer
from mindspeed_ms.formats.containers.new_file import NewFile
from mindspeed_ms.formats.containers.safe_pickle import SafeUnpickler
from mindspeed_ms.formats.containers.torch_file import TorchFile
from mindspeed_ms.formats.containers.torch_writer import TensorSpec, write_file
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.training import conversion as engine
from mindspeed_ms.training.checkpoint_config import spec_of
from mindspeed_ms.training.conversion import ConvertOptions, convert, open_source

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
MEGATRON_CORE = GOLDEN.parent / "megatron_core"
MOMENTS = {"exp_avg", "exp_avg_sq"}


def opened(path):
    return open_source(path, ConvertOptions())[0]


def read_all(path, step=None):
    catalog = open_checkpoint(find_checkpoint(path, step), spec_of)
    with TensorReader() as reader:
        return catalog, {name: reader.read(tensor) for name, tensor in catalog.tensors.items()}


def weights(case):
    arrays = np.load(GOLDEN / "weights_npz" / f"{case}_iter_0000000.npz")
    return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("case", ["c_llama_tp2_sp", "d_llama_pp2", "l_llama_legacy_tp2"])
def test_every_layout_and_naming_holds_the_same_model(case):
    _, expected = read_all(GOLDEN / "ckpt" / "c_llama_tp2_sp")
    catalog, arrays = read_all(GOLDEN / "ckpt" / case)
    assert arrays.keys() == expected.keys() and len(arrays) == 27
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert catalog.common["megatron_args"]["params_dtype"] == "torch.float32"
    # The initial weights do not depend on the learning rate: the shapes of the hot case are equal.
    hot = weights("b_llama_hot")
    spec = spec_of(catalog.common)
    assert {spec.by_name[name].megatron_name: a.shape for name, a in arrays.items()} == {
        name: a.shape for name, a in hot.items()
    }


def test_experts_have_numbers_over_the_whole_model():
    _, arrays = read_all(GOLDEN / "ckpt" / "g_moe")
    experts = [name for name in arrays if names.expert_of(name) is not None]
    assert len(experts) == 4 * 4 * 2
    mapping = "language_model.encoder.layers.3.mlp.experts.local_experts.2.mapping.weight"
    assert arrays[mapping].shape == (352, 64)


def test_optimizer_state_of_both_kinds():
    for case, tied in (("a_gpt2_save", True), ("e_llama_dp2_distopt_save", False)):
        catalog, arrays = read_all(GOLDEN / "ckpt" / case)
        plain = [name for name in arrays if not name.startswith("exp_avg")]
        assert (names.HEAD in plain) is not tied
        for name in plain:
            first, second = arrays[f"exp_avg.{name}"], arrays[f"exp_avg_sq.{name}"]
            assert first.shape == second.shape == arrays[name].shape
            assert (second >= 0).all() and first.any()
            # |m| <= sqrt(v) * sqrt of the ratio of their effective lengths
            assert (np.abs(first) <= 4 * np.sqrt(second) + 1e-12).all()
        assert catalog.common["optimizer"]["num_steps"] == 10
        assert catalog.common["consumed_train_samples"] == 80
        assert catalog.common["scheduler"]["num_steps"] == 80


class _Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/mindspeed_ms_was_here",)


@pytest.mark.parametrize(
    "value",
    [_Evil(), {"model": {"w": _Evil()}}, [pickle.loads, eval, Path("/")]],
    ids=["call", "nested", "functions"],
)
def test_nothing_in_a_pickle_is_executed(tmp_path, value):
    trap = Path("/tmp/mindspeed_ms_was_here")
    trap.unlink(missing_ok=True)
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
    content = TorchFile(path).content
    assert not trap.exists()
    assert "Inert" in str(type(content)) or isinstance(content, (dict, list))


def test_the_unpickler_knows_no_function_but_its_own():
    for target in safe_pickle._KNOWN.values():
        module = getattr(target, "__module__", "builtins")
        assert module in ("builtins", "collections", "argparse") or module.endswith("safe_pickle")
    found = SafeUnpickler(b"").find_class("os", "system")
    assert issubclass(found, safe_pickle.Inert)


def _damaged(path, data):
    path.write_bytes(data)
    return path


def test_damaged_files_are_named(tmp_path):
    source = GOLDEN / "ckpt" / "d_llama_pp2/iter_0000000/mp_rank_00_000/model_optim_rng.pt"
    data = source.read_bytes()
    for number, part in enumerate((data[:1000], data[:-2000], b"", b"PK\x03\x04" + b"x" * 99)):
        path = _damaged(tmp_path / f"{number}.pt", part)
        with pytest.raises(ValueError, match=f"{number}.pt is no complete torch file"):
            TorchFile(path)


def test_missing_ranks_are_named(tmp_path):
    folder = tmp_path / "iter_0000000"
    source = GOLDEN / "ckpt/c_llama_tp2_sp/iter_0000000/mp_rank_01"
    target = folder / "mp_rank_01"
    target.mkdir(parents=True)
    (target / "model_optim_rng.pt").write_bytes((source / "model_optim_rng.pt").read_bytes())
    with pytest.raises(ValueError, match="lacks tensor rank 0 of stage 0: it holds 1 of the 2 "):
        read_all(tmp_path)


def test_written_torch_files_read_back(tmp_path):
    path = tmp_path / "a.pt"
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    content = {
        "t": TensorSpec.of(rows),
        "parts": TensorSpec("F32", (12,), lambda: [rows[0], rows[1:]]),
        "half": TensorSpec.of(np.array([1, 2], np.uint16), "BF16"),
        "plain": [1, -1, 2**40, 1.5, True, None, "text", (1, 2), {}],
        "dtype": torch_file.TorchDtype("bfloat16"),
        "words": np.arange(5, dtype=np.uint32),
    }
    write_file(path, content)
    file = TorchFile(path)
    np.testing.assert_array_equal(file.numbers(file.content["t"]), np.arange(12))
    np.testing.assert_array_equal(file.numbers(file.content["parts"]), np.arange(12))
    assert file.content["plain"] == content["plain"]
    torch = pytest.importorskip("torch")
    loaded = torch.load(path, weights_only=False)
    assert loaded["t"].tolist() == rows.tolist() and loaded["half"].dtype == torch.bfloat16
    assert loaded["plain"] == content["plain"] and loaded["dtype"] == torch.bfloat16
    assert loaded["words"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("long_from", [None, 64])
def test_written_archives_are_those_of_the_format(tmp_path, monkeypatch, long_from):
    if long_from:  # entries, offsets and lists of the kind that files of gigabytes have
        monkeypatch.setattr(zip_writer, "_LONG_FROM", long_from)
    path = tmp_path / "a.pt"
    values = [np.arange(count, dtype=np.float32) for count in (1, 5, 3000, 4)]
    write_file(path, {"t": [TensorSpec.of(array) for array in values]})
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        entries = [info for info in archive.infolist() if "/data/" in info.filename]
        for info, array in zip(entries, values, strict=True):
            assert archive.read(info) == array.tobytes()
    file = TorchFile(path)
    for ref, array in zip(file.content["t"], values, strict=True):
        np.testing.assert_array_equal(file.numbers(ref), array)
        assert file.whole(ref).offset % 64 == 0
    torch = pytest.importorskip("torch")
    for mmap in (False, True):
        loaded = torch.load(path, mmap=mmap)["t"]
        assert [tensor.tolist() for tensor in loaded] == [array.tolist() for array in values]


def test_the_next_tensor_is_read_while_one_is_written(tmp_path, monkeypatch):
    asked, ready = [], threading.Event()

    def values(number):
        asked.append(number)
        if number == 1:
            ready.set()
        yield np.full(4, number, np.float32)

    real = NewFile.write_array

    def write_array(self, array):
        if array.size == 4 and array[0] == 0:
            assert ready.wait(60), "nothing is read while the first tensor is written"
        real(self, array)

    monkeypatch.setattr(NewFile, "write_array", write_array)
    tensors = [TensorSpec("F32", (4,), partial(values, number)) for number in range(3)]
    write_file(tmp_path / "a.pt", {"t": tensors})
    assert asked == [0, 1, 2]


def test_an_entry_of_another_size_than_announced_is_refused(tmp_path):
    short = TensorSpec("F32", (4,), lambda: [np.zeros(3, np.float32)])
    with pytest.raises(ValueError, match="has 12 bytes instead of 16; the source is incomplete"):
        write_file(tmp_path / "a.pt", {"t": short})


def test_files_of_torch_itself(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    torch.save({"view": base[1:3], "t": base.t(), "e": torch.nn.Parameter(base)}, tmp_path / "a.pt")
    file = TorchFile(tmp_path / "a.pt")
    with TensorReader() as reader:
        for name, expected in (("view", base[1:3]), ("t", base.t()), ("e", base)):
            ref = file.content[name]
            piece = file.whole(ref)
            stored = torch_file_tensor(ref, piece)
            np.testing.assert_array_equal(reader.read(stored), expected.detach().numpy())
    torch.save({"x": base[:, ::2]}, tmp_path / "b.pt")
    file = TorchFile(tmp_path / "b.pt")
    with pytest.raises(ValueError, match="with strides"):
        file.whole(file.content["x"])


def torch_file_tensor(ref, piece):
    from mindspeed_ms.formats.catalog import StoredTensor

    return StoredTensor(ref.shape, ref.storage.dtype, [piece])


@pytest.mark.parametrize(
    ("spelling", "current"),
    [
        (
            "language_model.encoder.layers.3.self_attention.query_key_value.bias",
            "decoder.layers.3.self_attention.linear_qkv.bias",
        ),
        (
            "language_model.transformer.layers.0.attention.dense.weight",
            "decoder.layers.0.self_attention.linear_proj.weight",
        ),
        (
            "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight",
            "decoder.layers.1.input_layernorm.weight",
        ),
        (
            "decoder.layers.1.mlp.linear_fc1.layer_norm_bias",
            "decoder.layers.1.pre_mlp_layernorm.bias",
        ),
        (
            "decoder.layers.1.self_attention.layer_norm_weight",
            "decoder.layers.1.input_layernorm.weight",
        ),
        (
            "decoder.layers.1.self_attention.in_proj.layer_norm_weight",
            "decoder.layers.1.input_layernorm.weight",
        ),
        (
            "decoder.layers.1.self_attention.linear_q_up_proj.layer_norm_weight",
            "decoder.layers.1.self_attention.q_layernorm.weight",
        ),
        (
            "mtp.layers.0.transformer_layer.self_attention.linear_kv_up_proj.layer_norm_weight",
            "mtp.layers.0.transformer_layer.self_attention.kv_layernorm.weight",
        ),
        ("decoder.layers.1.mlp.layer_norm_bias", "decoder.layers.1.pre_mlp_layernorm.bias"),
        ("word_embeddings_for_head.weight", "output_layer.weight"),
        ("word_embeddings.weight", "embedding.word_embeddings.weight"),
        (
            "decoder.layers.0.mlp.experts.linear_fc1.weight5",
            "decoder.layers.0.mlp.experts.local_experts.5.linear_fc1.weight",
        ),
        ("mtp.layers.0.eh_proj.weight", "mtp.layers.0.eh_proj.weight"),
    ],
)
def test_every_spelling_has_one_current_name(spelling, current):
    assert names.current_name(spelling) == current
    assert names.current_name(current) == current


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("encoder.layers.3.attention.q_down_proj.weight", "self_attention.linear_q_down_proj"),
        ("encoder.layers.3.attention.kv_up_proj.weight", "self_attention.linear_kv_up_proj"),
        ("encoder.layers.3.attention.kv_layernorm.weight", "self_attention.kv_layernorm"),
        ("encoder.layers.3.mlp.router.expert_bias", "mlp.router.expert_bias"),
        ("encoder.layers.3.mlp.shared_experts.mlp.mapping.weight", "mlp.shared_experts.linear_fc1"),
        ("encoder.layers.3.mlp.shared_experts.gate.weight", "mlp.shared_experts.gate_weight"),
        ("mtp.layers.0.eh_proj.weight", "mtp.layers.0.eh_proj"),
        (
            "mtp.layers.0.transformer_layer.mlp.shared_experts.mlp.mapping.weight",
            "transformer_layer.mlp.shared_experts.linear_fc1",
        ),
        ("mtp.layers.0.final_norm.weight", "mtp.layers.0.final_layernorm"),
    ],
)
def test_names_of_further_parts(ours, theirs):
    name = f"language_model.{ours}"
    model = TransformerConfig(
        vocab_size=64,
        num_layers=4,
        num_attention_heads=4,
        hidden_size=32,
        seq_length=8,
        position_embedding_type="rope",
        normalization="RMSNorm",
        multi_latent_attention=True,
        mla_config={"q_lora_rank": 8},
        qk_layernorm=True,
        mtp_num_layers=1,
        hidden_act="swiglu",
        qkv_has_bias=False,
        out_proj_has_bias=False,
        mlp_has_bias=False,
        moe_config=MoEConfig(
            num_experts=2,
            moe_router_score_function="sigmoid",
            moe_router_enable_expert_bias=True,
            moe_shared_expert_intermediate_size=8,
            moe_shared_expert_gate=True,
        ),
    )
    assert theirs in gpt_spec(model).by_name[name].megatron_name
    assert names.layer_of(name) == (None if ours.startswith("mtp.") else 3)


def test_experts_together_in_one_tensor(tmp_path):
    """Grouped products before Transformer Engine: matrices transposed, all of a rank at once."""
    catalog, golden = read_all(GOLDEN / "ckpt" / "g_moe")
    spec = spec_of(catalog.common)
    source = TorchFile(next((GOLDEN / "ckpt" / "g_moe").glob("iter_*/mp_rank_00/*.pt"))).content
    args = source["args"]
    args.__dict__.update(
        {key: value for key, value in vars(args).items() if isinstance(value, (int, float, str))}
    )
    for key, value in list(vars(args).items()):
        if not isinstance(value, (int, float, str, bool, type(None))):
            delattr(args, key)
    args.expert_model_parallel_size = 2
    stem = "language_model.encoder.layers.{}.mlp.experts.local_experts.{}.{}.weight"
    for rank in range(2):
        model = {}
        for name, array in golden.items():
            if names.expert_of(name) is None:
                model[spec.by_name[name].megatron_name] = TensorSpec.of(array)
        for layer in range(4):
            mine = range(2 * rank, 2 * rank + 2)
            first = np.stack([golden[stem.format(layer, e, "mapping")].T for e in mine])
            second = np.stack([golden[stem.format(layer, e, "projection")].T for e in mine])
            experts = f"decoder.layers.{layer}.mlp.experts"
            model[f"{experts}.weight1"] = TensorSpec.of(first.reshape(64, -1))
            model[f"{experts}.weight2"] = TensorSpec.of(second.reshape(-1, 64))
        folder = tmp_path / "iter_0000001" / f"mp_rank_00_{rank:03d}"
        folder.mkdir(parents=True)
        content = {"args": args, "model": model, "iteration": 1, "checkpoint_version": 3.0}
        write_file(folder / "model_optim_rng.pt", content)
    _, arrays = read_all(tmp_path, 1)
    assert arrays.keys() == golden.keys()
    for name, array in golden.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@pytest.mark.parametrize("version", [0, 1.0])
def test_older_orders_of_query_key_and_value(tmp_path, version):
    _, golden = read_all(GOLDEN / "ckpt" / "a_gpt2_save")
    name = "language_model.encoder.layers.0.attention.qkv_proj.weight"
    rows = golden[name].reshape(4, 3, 16, 64)  # heads, kinds, width
    order = (1, 0, 2, 3) if version == 0 else (0, 2, 1, 3)
    old = np.ascontiguousarray(rows.transpose(order)).reshape(192, 64)
    args = {"num_attention_heads": 4, "hidden_size": 64, "num_layers": 1, "seq_length": 64}
    from argparse import Namespace

    content = {
        "args": Namespace(**args),
        "checkpoint_version": version,
        "model": {
            "language_model": {
                "transformer": {"layers.0.attention.query_key_value.weight": TensorSpec.of(old)}
            }
        },
    }
    folder = tmp_path / "mp_rank_00"
    folder.mkdir()
    write_file(folder / "model_optim_rng.pt", content)
    _, arrays = read_all(tmp_path)
    np.testing.assert_array_equal(arrays[name], golden[name])


def model_names(root):
    """Parameters by file, in the order that numbers them in the optimizer's state."""
    return {
        str(path.relative_to(root)): list(TorchFile(path).content["model"])
        for path in sorted(root.rglob("model_optim_rng.pt"))
    }


@pytest.mark.parametrize(
    ("model", "kinds", "layout"),
    [
        ("dense", MOMENTS, {"tensor": 2, "data_parallel": 2}),
        ("moe", MOMENTS, {"expert": 2, "data_parallel": 2}),
        ("grouped", {*MOMENTS, "main"}, {}),
        ("latent", MOMENTS, {}),
        ("whole", MOMENTS, {"tensor": 2, "expert": 2}),
    ],
)
def test_both_formats_of_megatron_core_hold_the_same(tmp_path, model, kinds, layout):
    """A state in buffers or numbered, and as torch_dist flattens and stacks it."""
    folder = MEGATRON_CORE / model
    joined, shards = (opened(folder / kind) for kind in ("torch", "torch_dist"))
    assert diff(joined, shards) == []
    assert {engine.kind_of(name) for name in shards.tensors} - {""} == set(kinds)
    weights = [name for name in shards.tensors if not engine.kind_of(name)]
    for kind in kinds:
        held = {name for name in shards.tensors if engine.kind_of(name) == kind}
        assert held == {
            f"{kind}.{name}" for name in weights if not name.endswith("router.expert_bias")
        }
    assert joined.common["optimizer"] == shards.common["optimizer"] == {"num_steps": 2}
    assert joined.common["scheduler"] == shards.common["scheduler"]
    assert "not_read" not in shards.common
    convert(folder / "torch_dist", tmp_path / "own", ConvertOptions())
    options = ConvertOptions(to="megatron", make_vocab_size_divisible_by=64, **layout)
    convert(tmp_path / "own", tmp_path / "back", options)
    assert diff(joined, opened(tmp_path / "back")) == []
    if model not in ("grouped", "whole"):  # experts are written one by one, and cut
        assert model_names(tmp_path / "back") == model_names(folder / "torch")


def test_the_last_stage_has_the_embedding_that_further_tokens_need(tmp_path):
    """Megatron loads strictly: a copy of the table lies beside the layers for further tokens."""
    folder = MEGATRON_CORE / "latent" / "torch"
    options = ConvertOptions(to="megatron", pipeline=2, make_vocab_size_divisible_by=64)
    convert(folder, tmp_path, options)
    first, last = model_names(tmp_path).values()
    table = "embedding.word_embeddings.weight"
    assert first[0] == last[0] == table and "mtp.layers.0.eh_proj._extra_state" in last
    assert diff(opened(folder), opened(tmp_path)) == []
