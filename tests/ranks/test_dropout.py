# SPDX-License-Identifier: Apache-2.0
"""Dropout: equal masks on copies of an activation, different ones on its parts, from the flags."""

import numpy as np
import pipeline_runs as runs
import pytest

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.core.tensor_parallel import get_rng_tracker
from mindspeed_ms.legacy.model.transformer import residual_dropout_stream

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
TP2 = ["--tensor-model-parallel-size", "2"]


def rates_worker(flags):
    config = runs.start("gpt2", flags)
    model = runs.provider(True, True).set_train(True)
    layer = next(iter(model.language_model.encoder.layers))
    return (
        config.model_config.attention_dropout_rate,
        config.model_config.hidden_dropout_rate,
        layer.attention.core_attention.dropout_rate,
        layer.hidden_dropout,
        model.language_model.embedding.dropout,
    )


def test_flags_reach_every_place_that_drops(dist_run):
    flags = ["--attention-dropout", "0.25", "--hidden-dropout", "0.125"]
    for rates in dist_run(rates_worker, ranks=2, flags=flags):
        assert rates == (0.25, 0.125, 0.25, 0.125, 0.125)


def zeros_worker(flags):
    """Which elements each place drops on this rank."""
    runs.start("gpt2", [*TP2, *flags, "--attention-dropout", "0.5", "--hidden-dropout", "0.5"])
    model = runs.provider(True, True).set_train(True)
    parallel = "--sequence-parallel" in flags
    batch = next(runs.micro_batches())
    tensors = {name: memory.from_numpy(np.ascontiguousarray(v)) for name, v in batch.items()}
    embedding = model.language_model.embedding
    embedded = memory.as_numpy(embedding(tensors["tokens"], tensors["position_ids"]))
    core = next(iter(model.language_model.encoder.layers)).attention.core_attention
    heads = memory.from_numpy(np.ones((16, 1, 1, 8), np.float32))
    attended = memory.as_numpy(core(heads, heads, heads, None))
    states = get_rng_tracker().get_states()
    with residual_dropout_stream(parallel) as stream:
        stream = stream or get_rng_tracker().current()
        seed = stream.seed
    return embedded == 0, attended, seed, states


@pytest.mark.parametrize("parallel", [False, True], ids=["replicated", "sequence-parallel"])
def test_copies_drop_alike_and_parts_differently(dist_run, parallel):
    flags = ["--sequence-parallel"] if parallel else []
    first, second = dist_run(zeros_worker, ranks=2, flags=flags)
    assert 0.3 < first[0].mean() < 0.7
    same_embedding = bool((first[0] == second[0]).all())
    assert same_embedding != parallel
    assert (first[2] == second[2]) != parallel
    # Heads are always split, so attention weights are dropped differently.
    assert not np.allclose(first[1], second[1])
    default, model = "data-parallel-rng", "model-parallel-rng"
    assert (first[3][default] == second[3][default]) and first[3][model] != second[3][model]


def training_worker(flags):
    return runs.train("llama", ["--attention-dropout", "0.1", "--hidden-dropout", "0.1", *flags])


RECOMPUTE = [
    *("--recompute-granularity", "full", "--recompute-method", "uniform"),
    *("--recompute-num-layers", "1"),
]


@pytest.mark.parametrize(
    "layout",
    [
        ["--pipeline-model-parallel-size", "2"],
        [
            *("--pipeline-model-parallel-size", "2"),
            *("--num-virtual-stages-per-pipeline-rank", "2"),
        ],
        [*TP2, "--sequence-parallel"],
    ],
    ids=["pp2", "pp2-vpp2", "tp2-sp"],
)
def test_recompute_repeats_the_masks_of_every_microbatch_in_flight(dist_run, layout):
    kept = dist_run(training_worker, ranks=2, timeout=200.0, flags=layout)
    again = dist_run(training_worker, ranks=2, timeout=200.0, flags=[*layout, *RECOMPUTE])
    assert kept == again
    assert kept[0] == kept[1]


def evaluation_worker():
    """Without training mode nothing is dropped and no stream moves."""
    runs.start("gpt2", [*TP2, "--attention-dropout", "0.5", "--hidden-dropout", "0.5"])
    model = runs.provider(True, True).set_train(False)
    before = get_rng_tracker().get_states()
    batch = next(runs.micro_batches())
    tensors = {name: memory.from_numpy(np.ascontiguousarray(v)) for name, v in batch.items()}
    with autograd.no_grad():
        losses = [float(model(attention_mask=None, **tensors)) for _ in range(2)]
    assert len(named_parameters(model)) > 0 and parallel_state.is_initialized()
    return losses[0] == losses[1] and get_rng_tracker().get_states() == before


def test_evaluation_drops_nothing(dist_run):
    assert dist_run(evaluation_worker, ranks=2) == [True, True]
