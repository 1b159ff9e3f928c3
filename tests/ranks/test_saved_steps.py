# SPDX-License-Identifier: Apache-2.0
"""What single iterations computed with is written as it was, in every layout."""

import json

import numpy as np
import pytest
from checkpoint_runs import NO_DROPOUT, run, tensors_of
from run_builder import open_run
from safetensors.numpy import load_file

KINDS = ("params", "wgrads", "activations", "dgrads", "tokens-per-expert")
EVERY_TWO = [word for kind in KINDS for word in (f"--save-{kind}-interval", "2")]


def worker(folder, layouts):
    for name, layout in layouts.items():
        flags = [*NO_DROPOUT, *layout, "--save", f"{folder}/{name}", "--save-interval", "2"]
        run("moe", [*flags, "--exit-interval", "3", *EVERY_TWO], f"{folder}/cache")


LAYOUTS = {
    "zero1": ["--use-distributed-optimizer"],
    "tp2": ["--tensor-model-parallel-size", "2", "--sequence-parallel"],
}


@pytest.mark.slow
def test_iterations_are_written_the_same_in_two_layouts(dist_run, tmp_path):
    dist_run(worker, ranks=2, timeout=240.0, folder=str(tmp_path), layouts=LAYOUTS)
    one, two = tmp_path / "zero1", tmp_path / "tp2"
    assert not (one / "params/iter_0000001").exists() and not (one / "wgrads/iter_0000003").exists()
    weights, saved = tensors_of(one / "params"), tensors_of(one / "iter_0000002")
    for name, values in weights.items():  # those behind the second step, as its checkpoint has them
        assert np.array_equal(values, saved[name])
    first, second = tensors_of(one / "wgrads"), tensors_of(two / "wgrads")
    assert set(first) == set(second) and any(values.any() for values in first.values())
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], atol=2e-6, rtol=1e-4)
    seen = load_file(one / "activations/iter_0000002/rank_00000.safetensors")
    back = load_file(one / "dgrads/iter_0000002/rank_00000.safetensors")
    projection = "model_chunk0/language_model.encoder.layers.1.attention.out_proj"
    assert seen[f"{projection}/output0"].shape == back[f"{projection}/output0"].shape == (32, 1, 32)
    assert not (one / "activations/iter_0000002/rank_00001.safetensors").exists()
    assert (two / "activations/iter_0000002/rank_00001.safetensors").exists()
    lines = [
        json.loads(line)
        for rank in (0, 1)
        for line in (one / f"tokens_per_expert/rank{rank}.jsonl").read_text().splitlines()
    ]
    assert {line["iter"] for line in lines} == {2} and len(lines) == 2 * 4
    assert {line["layer"] for line in lines} == {0, 1, 2, 3}
    for line in lines:  # 4 micro-batches of a rank: 32 tokens, each to 2 of 4 experts
        assert [sum(load) for load in line["tpe"]] == [64] * 4


def test_the_gradients_of_weights_follow_from_those_of_outputs(tmp_path):
    flags = ["--train-iters", "1", "--global-batch-size", "1", "--save", str(tmp_path)]
    every = [word for kind in KINDS[1:4] for word in (f"--save-{kind}-interval", "1")]
    run_, _ = open_run(*flags, "--save-interval", "1", *every)
    with run_:
        run_.train()
    seen, back = (
        load_file(tmp_path / kind / "iter_0000001/rank_00000.safetensors")
        for kind in ("activations", "dgrads")
    )
    grads, name = tensors_of(tmp_path / "wgrads"), "language_model.encoder.layers.0.mlp.mapping"
    x, dy = seen[f"model_chunk0/{name}/input0"], back[f"model_chunk0/{name}/output0"]
    product = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    np.testing.assert_allclose(product, grads[f"{name}.weight"], atol=1e-6, rtol=1e-4)


def test_without_a_folder_there_is_nowhere_to_write():
    with pytest.raises(ValueError, match="--save-wgrads-interval writes below the folder of check"):
        open_run("--save-wgrads-interval", "1")
