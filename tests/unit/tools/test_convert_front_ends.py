# SPDX-License-Identifier: Apache-2.0
"""The predecessor's three command lines, and torch's distributed format."""

import json
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.formats import mindspore_dirs
from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.formats.compare import diff
from mindspeed_ms.formats.containers import mindspore_file
from mindspeed_ms.formats.containers.safetensors_file import Entry
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.training.conversion import ConvertOptions, open_source
from tools.convert_ckpt import combine_ckpt_dp_zero, convert_ckpt2pt, convert_pt2ckpt

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "ckpt"


def opened(path, **options):
    return open_source(path, ConvertOptions(**options))[0]


def test_there_and_back_with_the_optimizer(tmp_path):
    case = GOLDEN / "e_llama_dp2_distopt_save"
    ms, pt = tmp_path / "ms", tmp_path / "pt"
    sizes = ["--tp-size", "2", "--pp-size", "2", "--dp-size", "2"]
    first = ["--megatron-path", str(case), "--ms-path", str(ms), *sizes]
    assert convert_pt2ckpt.main([*first, "--stage-list", "1", "3", "--generate-all-dp-cp"]) == 0
    assert len(list(ms.glob("rank_*/network.ckpt"))) == 8
    assert diff(opened(case), opened(ms)) == []
    second = ["--ms-path", str(ms), "--megatron-path", str(pt), *sizes, "--num-layers", "4"]
    assert convert_ckpt2pt.main([*second, "--param-map-path", "unused"]) == 0
    assert len(list(pt.glob("iter_0000010/mp_rank_*/distrib_optim.pt"))) == 4
    assert diff(opened(case), opened(pt)) == []


def test_identity_layers_and_weights_only(tmp_path, refused):
    ms, pt = tmp_path / "ms", tmp_path / "pt"
    case = GOLDEN / "c_llama_tp2_sp"
    flags = ["--megatron-path", str(case), "--ms-path", str(ms), "--convert-param-only"]
    assert convert_pt2ckpt.main([*flags, "--format", "safetensors"]) == 0
    back = ["--ms-path", str(ms), "--megatron-path", str(pt), "--pp-size", "2"]
    assert convert_ckpt2pt.main([*back, "--num-layers", "6", "--noop", "2", "5"]) == 0
    found = {name for name in opened(pt).tensors if "layers." in name}
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in found}
    assert layers == {0, 1, 3, 4} or len(layers) == 4
    wrong = [*back, "--num-layers", "5", "--noop", "2", "5"]
    assert "error: " in refused(convert_ckpt2pt.main, wrong)


def _write_shards(folder, ranks, arrays, bucket):
    """Files of data parallel ranks that share one bucket, as the predecessor writes them."""
    info, position = {}, 0
    for name, array in arrays.items():
        info[name] = {
            "range_map": [0, 0, position, position + array.size],
            "shape": list(array.shape),
            "dtype": "Float32",
        }
        position += array.size
    flat = np.concatenate([array.reshape(-1) for array in arrays.values()])
    flat = np.concatenate([flat, np.zeros(bucket - flat.size, np.float32)])
    strategies = folder / "opt_shard_info"
    strategies.mkdir(parents=True)
    for index, rank in enumerate(ranks):
        part = np.split(flat, len(ranks))[index]
        target = folder / f"rank_{rank}"
        target.mkdir()
        entries = [
            Entry("exp_avg.buffer_0_bucket_0", "F32", part.shape, part),
            Entry("exp_avg_sq.buffer_0_bucket_0", "F32", part.shape, part * 2),
            *(Entry(name, "F32", array.shape, array) for name, array in arrays.items()),
        ]
        mindspore_file.write_file(target / f"network_rank_{rank}-0_10.ckpt", entries)
        (strategies / f"dist_opt_shard_info_rank_{rank}-0_0.json").write_text(
            json.dumps({"dp_rank_list": list(ranks), "param_info": info, "buffer_info": {}})
        )


def test_shards_are_joined_by_parameter(tmp_path, refused):
    rng = np.random.default_rng(0)
    arrays = {
        f"language_model.encoder.layers.0.mlp.{name}": rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("mapping.weight", (8, 3)), ("projection.weight", (3, 4)))
    }
    _write_shards(tmp_path / "in", (0, 2), arrays, 40)
    flags = [
        *("--strategy-dir", str(tmp_path / "in" / "opt_shard_info")),
        *("--checkpoint-dir", str(tmp_path / "in"), "--output-dir", str(tmp_path / "out")),
    ]
    assert combine_ckpt_dp_zero.main([*flags, "--copy-to-all-dp-ranks"]) == 0
    files = sorted((tmp_path / "out").glob("rank_*/*_dp_merged.ckpt"))
    assert [file.parent.name for file in files] == ["rank_0", "rank_2"]
    model = TransformerConfig(
        vocab_size=8,
        num_layers=1,
        num_attention_heads=1,
        hidden_size=3,
        seq_length=4,
        ffn_hidden_size=4,
        hidden_act="swiglu",
    )
    catalog = mindspore_dirs.read_catalog(files[1], lambda common: gpt_spec(model))
    with TensorReader() as reader:
        for name, array in arrays.items():
            np.testing.assert_array_equal(reader.read(catalog.tensors[name]), array)
            state = reader.read(catalog.tensors[f"exp_avg_sq.{name}"])
            np.testing.assert_array_equal(state, array * 2)
    told = refused(combine_ckpt_dp_zero.main, ["--strategy-dir", str(tmp_path)])
    assert "holds no dist_opt_shard_info" in told


def test_unjoined_shards_are_refused(tmp_path):
    name = "language_model.encoder.final_norm.weight"
    _write_shards(tmp_path, (0, 1), {name: np.zeros(4, np.float32)}, 8)
    with pytest.raises(ValueError, match="combine_ckpt_dp_zero"):
        opened(tmp_path)


# --- torch's distributed format ---------------------------------------------------------------


def _stack(arrays, kind, layers, experts=0):
    """Megatron's stacked tensor of a parameter of every layer."""
    if experts:
        return np.stack(
            [
                np.stack([arrays[kind.format(layer, expert)] for expert in range(experts)])
                for layer in range(layers)
            ]
        )
    return np.stack([arrays[kind.format(layer)] for layer in range(layers)])


STACKED = {
    "decoder.layers.input_layernorm.weight": "input_norm.weight",
    "decoder.layers.self_attention.linear_qkv.weight": "attention.qkv_proj.weight",
    "decoder.layers.self_attention.linear_proj.weight": "attention.out_proj.weight",
    "decoder.layers.pre_mlp_layernorm.weight": "post_attention_norm.weight",
    "decoder.layers.mlp.router.weight": "mlp.router.weight",
}
EXPERTS = {
    "decoder.layers.mlp.experts.experts.linear_fc1.weight": "mapping.weight",
    "decoder.layers.mlp.experts.experts.linear_fc2.weight": "projection.weight",
}
SINGLE = {
    "embedding.word_embeddings.weight": "language_model.embedding.word_embeddings.weight",
    "decoder.final_layernorm.weight": "language_model.encoder.final_norm.weight",
    "output_layer.weight": "language_model.output_layer.weight",
}


def _distributed_state():
    """The golden mixture of experts as Megatron's distributed checkpoint names it."""
    catalog = opened(GOLDEN / "g_moe")
    with TensorReader() as reader:
        arrays = {name: reader.read(tensor) for name, tensor in catalog.tensors.items()}
    stem = "language_model.encoder.layers.{}."
    state = {key: arrays[name] for key, name in SINGLE.items()}
    state |= {key: _stack(arrays, stem + name, 4) for key, name in STACKED.items()}
    experts = stem + "mlp.experts.local_experts.{}."
    state |= {key: _stack(arrays, experts + name, 4, 4) for key, name in EXPERTS.items()}
    return state


@pytest.mark.filterwarnings("ignore")
def test_torch_dist_checkpoints_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    meta = pytest.importorskip("torch.distributed.checkpoint.metadata")
    state = {key: torch.from_numpy(array) for key, array in _distributed_state().items()}
    state["optimizer.state.exp_avg.output_layer.weight"] = state["output_layer.weight"] * 2
    state["optimizer.distributed.dp_group_idx_0.bucket"] = torch.zeros(3)
    # Every tensor is written in two chunks, which torch's own metadata then join.
    halves = {}
    for key, tensor in state.items():
        cut = tensor.shape[0] // 2
        halves[f"{key}/0"], halves[f"{key}/1"] = tensor[:cut].clone(), tensor[cut:].clone()
    folder = tmp_path / "iter_0000007"
    dcp.save(halves, checkpoint_id=str(folder), no_dist=True)
    written = dcp.FileSystemReader(str(folder)).read_metadata()
    entries, places = {}, {}
    for key, tensor in state.items():
        chunks = []
        for number, start in enumerate((0, tensor.shape[0] // 2)):
            part = halves[f"{key}/{number}"]
            offsets = torch.Size([start, *([0] * (tensor.dim() - 1))])
            chunks.append(meta.ChunkStorageMetadata(offsets=offsets, sizes=part.shape))
            index = next(i for i in written.storage_data if i.fqn == f"{key}/{number}")
            places[meta.MetadataIndex(key, offsets)] = written.storage_data[index]
        entries[key] = meta.TensorStorageMetadata(
            properties=written.state_dict_metadata[f"{key}/0"].properties,
            size=tensor.shape,
            chunks=chunks,
        )
    import pickle

    joined = meta.Metadata(state_dict_metadata=entries, storage_data=places)
    (folder / ".metadata").write_bytes(pickle.dumps(joined))
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    from argparse import Namespace

    args = Namespace(
        num_layers=4, hidden_size=64, num_attention_heads=4, swiglu=True, num_experts=4
    )
    torch.save(
        {
            "args": args,
            "iteration": 7,
            "optimizer": {"optimizer": {"param_groups": [{"step": 7}]}},
        },
        folder / "common.pt",
    )
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    catalog = opened(tmp_path)
    assert catalog.common["iteration"] == 7 and catalog.common["optimizer"] == {"num_steps": 7}
    assert "1 tensors of the optimizer" in catalog.common["not_read"]
    moment = catalog.tensors.pop("exp_avg.language_model.output_layer.weight")
    assert moment.shape == (512, 64)
    assert diff(opened(GOLDEN / "g_moe"), catalog) == []
    (folder / ".metadata").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="metadata cannot be read"):
        opened(tmp_path)
