# SPDX-License-Identifier: Apache-2.0
"""The self-test of layouts: it agrees where they do, and names what differs where they do not."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.command import compare_layouts as tool
from mindspeed_ms.command import parity
from mindspeed_ms.core.parameter import ShardSpec

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def flags_of(case, output):
    run = parity.load_run(GOLDEN, case)
    flags = parity.recorded_flags(run, GOLDEN, output)
    return [flag for flag in flags if flag != "--use-cpu-initialization"]


def compare_worker(output, layouts, breakage):
    finalize = sys.modules["mindspeed_ms.core.distributed.finalize_model_grads"]
    original = finalize._sum_tied_embedding_grads
    if breakage:
        finalize._sum_tied_embedding_grads = lambda models, group: None
    try:
        runs = [tool.train(layout, flags_of("a_gpt2_hot", output), 2) for layout in layouts]
    finally:
        finalize._sum_tied_embedding_grads = original
    return tool.table(runs, 1e-5)


def test_layouts_agree(dist_run, tmp_path):
    layouts = ["", "tp=2,pp=2,sp", "pp=2,vpp=2", "zero1", "tp=3"]
    lines, agree = dist_run(
        compare_worker, ranks=4, timeout=300.0, output=str(tmp_path), layouts=layouts, breakage=0
    )[0]
    assert agree, "\n".join(lines)
    assert [line.split()[0] for line in lines[1:]] == ["dp", *layouts[1:]]
    assert "refused" in lines[-1] and all(line.endswith("-") for line in lines[1:-1])


def test_a_missing_reduction_is_named(dist_run, tmp_path):
    lines, agree = dist_run(
        compare_worker,
        ranks=2,
        timeout=300.0,
        output=str(tmp_path),
        layouts=["", "pp=2"],
        breakage=1,
    )[0]
    assert not agree
    assert "language_model.embedding.word_embeddings.weight" in lines[2]


def refused_first_worker(output):
    with pytest.raises(ValueError, match="was refused; name another one first"):
        tool.compare(flags_of("a_gpt2_hot", output), ["tp=3"], 1, 1e-5)


def test_something_to_compare_with_is_needed(dist_run, tmp_path):
    dist_run(refused_first_worker, ranks=2, output=str(tmp_path))


def test_layouts_become_flags():
    assert tool.layout_flags("tp=2, sp") == [
        *("--tensor-model-parallel-size", "1", "--pipeline-model-parallel-size", "1"),
        *("--tensor-model-parallel-size", "2", "--sequence-parallel"),
    ]
    with pytest.raises(ValueError, match="contains 'pq=2'; use tp=N"):
        tool.layout_flags("tp=2,pq=2")
    assert tool.covering_layouts(1) == [""]
    assert "pp=2,vpp=2" in tool.covering_layouts(2) and "pp=4" in tool.covering_layouts(4)


def test_parts_are_joined_and_copies_left_out():
    halves = [
        {
            "w": (
                np.full((1, 2), rank),
                ShardSpec(partition_dim=0, partitions=2, partition_rank=rank),
            )
        }
        for rank in range(2)
    ]
    halves[0]["copy"] = (np.zeros(1), ShardSpec(shared=True))
    whole = tool.joined(halves)
    assert list(whole) == ["w"] and whole["w"].tolist() == [[0, 0], [1, 1]]


def test_errors_are_relative_and_nan_is_infinite():
    assert tool.largest_error([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    assert tool.largest_error([float("nan")], [1.0]) == float("inf")
    assert tool.largest_error([1.0], [1.0, 2.0]) == float("inf")
    reference = tool.Run("a", gradients={"x": np.ones(2), "y": np.ones(2)})
    other = tool.Run("b", gradients={"x": np.ones(2), "y": np.ones(3)})
    assert tool.first_difference(other, reference, 1e-5).startswith("y (missing")
    assert tool.first_difference(tool.Run("c"), reference, 1e-5) == ""
