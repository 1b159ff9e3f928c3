# SPDX-License-Identifier: Apache-2.0
"""Zero-centred norm weights and norms of queries and keys, against runs that must equal them."""

import numpy as np
import pipeline_runs
import pytest

pytestmark = pytest.mark.ranks
TP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]


def train_worker(style, flags):
    return pipeline_runs.train(style, flags)


def losses(dist_run, ranks, style, flags):
    results = dist_run(train_worker, ranks=ranks, timeout=120.0, style=style, flags=flags)
    return np.array(results[-1])


@pytest.mark.parametrize("style", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_zero_centred_weights_train_like_plain_ones(dist_run, style):
    plain = losses(dist_run, 1, style, [])
    centred = losses(dist_run, 1, style, ["--apply-layernorm-1p"])
    assert centred == pytest.approx(plain, rel=2e-6)


@pytest.mark.parametrize(
    "flags",
    [
        ["--qk-layernorm", "--apply-layernorm-1p"],
        pytest.param(["--qk-layernorm"], marks=pytest.mark.slow),
    ],
)
def test_norms_of_queries_and_keys_do_not_depend_on_the_layout(dist_run, flags):
    alone = losses(dist_run, 1, "llama", flags)
    cut = losses(dist_run, 2, "llama", [*flags, *TP2])
    assert cut == pytest.approx(alone, rel=1e-5)
    assert not np.allclose(alone, losses(dist_run, 1, "llama", []), rtol=1e-4)
