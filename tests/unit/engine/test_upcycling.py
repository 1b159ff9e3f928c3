# SPDX-License-Identifier: Apache-2.0
"""Experts made from the blocks of a dense model."""

import checkpoint_runs
import numpy as np
import pytest

from mindspeed_ms.backend import memory
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.engine.upcycling import expert_part
from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.legacy.model import GPTModel

EXPERTS = (
    "--num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 24 "
    "--moe-router-load-balancing-type none --moe-token-dispatcher-type alltoall "
    "--moe-use-upcycling --moe-upcycling-granularity 2"
).split()
ONE_STEP = "--exit-interval 1".split()


def trained(flags, cache):
    """(losses, weights behind the last step)."""
    built = []

    def provider(pre_process, post_process):
        config = checkpoint_runs.get_all_config().model_config
        built.append(GPTModel(config, pre_process=pre_process, post_process=post_process))
        return built[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_runs, "provider", provider)
        losses = checkpoint_runs.run("llama", flags, cache)["loss"]
    weights = {
        name: memory.as_numpy(memory.contiguous(param)).copy()
        for name, param in named_parameters(built[-1])
    }
    return losses, weights


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """(folder of a checkpoint, its weights)."""
    folder = tmp_path_factory.mktemp("dense")
    flags = ["--save", str(folder), "--save-interval", "1", *ONE_STEP]
    return folder, trained(flags, folder / "cache")[1]


def test_experts_get_scaled_pieces_of_the_dense_block(dense, tmp_path):
    folder, before = dense
    frozen = ["--lr", "1e-30", "--min-lr", "0", "--weight-decay", "0"]
    _, after = trained(["--load", str(folder), *EXPERTS, *frozen, *ONE_STEP], tmp_path)
    scale = 2.0 ** (1 / 3)
    block = "language_model.encoder.layers.1.mlp"
    gate, up = np.split(before[f"{block}.mapping.weight"], 2)
    for expert in range(4):
        mine = slice(24 * (expert % 2), 24 * (expert % 2 + 1))
        path = f"{block}.experts.local_experts.{expert}"
        first = np.concatenate([gate[mine], up[mine]]) * scale
        np.testing.assert_allclose(after[f"{path}.mapping.weight"], first, rtol=1e-6)
        second = before[f"{block}.projection.weight"][:, mine] * scale
        np.testing.assert_allclose(after[f"{path}.projection.weight"], second, rtol=1e-6)
    router = after[f"{block}.router.weight"]
    np.testing.assert_array_equal(router[0], router[1])
    np.testing.assert_array_equal(router[2], router[3])
    name = "language_model.encoder.layers.1.attention.qkv_proj.weight"
    np.testing.assert_array_equal(after[name], before[name])


def test_a_dense_tensor_is_read_once_for_all_experts(dense, tmp_path, monkeypatch):
    read, seen = TensorReader.read, []

    def counted(self, tensor, dtype=None):
        seen.append((tensor.pieces[0].path, tensor.pieces[0].offset))
        return read(self, tensor, dtype)

    monkeypatch.setattr(TensorReader, "read", counted)
    trained(["--load", str(dense[0]), *EXPERTS, *ONE_STEP], tmp_path)
    assert seen and len(seen) == len(set(seen))


def test_the_mixture_begins_as_the_dense_model(dense, tmp_path):
    """Whole blocks, whose weights sum to 1; pieces come close, as silu is not linear."""
    folder, _ = dense
    start = ["--load", str(folder), "--finetune", *ONE_STEP]
    whole, _ = trained(start, tmp_path)
    copies = ["--moe-ffn-hidden-size", "48", "--moe-upcycling-granularity", "1"]
    same, _ = trained([*start, *EXPERTS, *copies], tmp_path)
    assert same[1] == pytest.approx(whole[1], abs=2e-5)
    cut, _ = trained([*start, *EXPERTS], tmp_path)
    assert cut[1] == pytest.approx(whole[1], abs=1e-2)


def test_what_cannot_be_made_from_a_dense_model_is_said(dense, tmp_path, capsys):
    folder, _ = dense
    cases = {
        ("--moe-shared-expert-intermediate-size", "16"): "cannot be made from a dense model",
        ("--moe-upcycling-granularity", "3"): "a number of experts that it divides",
        ("--moe-ffn-hidden-size", "16"): "gives shape",
        ("--save", str(folder), "--save-interval", "1"): "holds a checkpoint already",
    }
    for flags, words in cases.items():
        with pytest.raises((ValueError, SystemExit)) as caught:
            trained(["--load", str(folder), *EXPERTS, *flags, *ONE_STEP], tmp_path)
        assert words in str(caught.value) + capsys.readouterr().err, flags


def test_a_bias_behind_the_block_is_whole_in_every_expert():
    bias = np.arange(3.0)
    assert expert_part("projection.bias", bias, 1, 2, 1.5, is_gated=False) is bias
