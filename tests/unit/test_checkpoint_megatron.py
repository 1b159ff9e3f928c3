"""Megatron's own checkpoint files: every tensor is found, and nothing in them is executed."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.core.dist_checkpointing.catalog import TensorReader
from mindspeed_ms.core.dist_checkpointing.formats import names, torch_file
from mindspeed_ms.core.dist_checkpointing.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.core.dist_checkpointing.formats.torch_file import SafeUnpickler, TorchFile
from mindspeed_ms.core.dist_checkpointing.formats.torch_writer import TensorSpec, write_file

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def read_all(path, step=None):
    catalog = open_checkpoint(find_checkpoint(path, step))
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
    assert {names.megatron_name(name): a.shape for name, a in arrays.items()} == {
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
    for target in torch_file._KNOWN.values():
        module = getattr(target, "__module__", "builtins")
        assert module in ("builtins", "collections", "argparse") or module.endswith("torch_file")
    found = SafeUnpickler(io.BytesIO()).find_class("os", "system")
    assert issubclass(found, torch_file.Inert)


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
    with pytest.raises(ValueError, match="holds 1 of the 2 ranks of tensor 2 x pipeline 1"):
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
    from mindspeed_ms.core.dist_checkpointing.catalog import StoredTensor

    return StoredTensor(ref.shape, ref.storage.dtype, [piece])


def test_names_go_there_and_back():
    _, moe = read_all(GOLDEN / "ckpt" / "g_moe")
    _, gpt = read_all(GOLDEN / "ckpt" / "a_gpt2_save")
    for name in [*moe, *(name for name in gpt if not name.startswith("exp_avg"))]:
        theirs = names.megatron_name(name)
        has_bias = {theirs} | {
            theirs.replace("weight", "bias") for _ in range(1) if name.endswith("gamma")
        }
        assert names.own_name(theirs, has_bias.__contains__) == name
