# SPDX-License-Identifier: Apache-2.0
"""Ranks that share sequences: models and loaders that cut them, and those that do not."""

import itertools

import numpy as np
import pipeline_runs
import pytest
from dist import RankFailure
from mindspore import ops

from mindspeed_ms.backend import memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.datasets import get_batch
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.training import pretrain

pytestmark = pytest.mark.ranks
NAMES = ("tokens", "position_ids", "loss_mask", "labels")


class CuttingModel(GPTModel):
    """Takes its part of the batch itself, as the guide's model does."""

    def construct(self, tokens, position_ids, attention_mask, loss_mask, labels=None):
        size = parallel_state.get_context_parallel_world_size()
        rank = parallel_state.get_context_parallel_rank()
        parts = (tokens, position_ids, loss_mask, labels)
        if size > 1:
            parts = [ops.chunk(part, size, 1)[rank] for part in parts]
        tokens, position_ids, loss_mask, labels = parts
        return super().construct(tokens, position_ids, attention_mask, loss_mask, labels=labels)


def whole_batch(iterator):
    """Whole sequences, as the predecessor's ``get_batch`` hands over."""
    batch = next(iterator)
    found = {name: memory.from_numpy(np.ascontiguousarray(batch[name])) for name in NAMES}
    return {**found, "attention_mask": None}


def cutting_worker(algo, combinations):
    """Losses of a training for each (the model cuts, the loader does not)."""
    found = []
    for model_cuts, is_whole in combinations:
        parallel_state.destroy_model_parallel()
        size = "1" if algo is None else "4" if algo == "hybrid_cp_algo" else "2"
        flags = ["--context-parallel-size", size]
        flags += ["--context-parallel-algo", algo] if algo else []
        flags += ["--ulysses-degree-in-cp", "2"] if algo == "hybrid_cp_algo" else []
        pipeline_runs.start("llama", ["--num-attention-heads", "4", *flags])
        kind = CuttingModel if model_cuts else GPTModel
        steps = []

        class Endless:
            def __iter__(self):
                return pipeline_runs.micro_batches()

        pretrain(
            None,
            lambda pre_process, post_process, kind=kind: kind(
                get_all_config().model_config, pre_process=pre_process, post_process=post_process
            ),
            all_config=get_all_config(),
            train_data_loader=Endless(),
            get_batch_func=whole_batch if is_whole else get_batch,
            on_step=steps.append,
        )
        found.append([step.losses["lm loss"] for step in steps])
    return found


ALL = list(itertools.product((False, True), repeat=2))


def check(dist_run, ranks, algorithms):
    ((expected,),) = dist_run(cutting_worker, ranks=1, algo=None, combinations=[(True, False)])
    for algo in algorithms:
        for found in dist_run(cutting_worker, ranks=ranks, algo=algo, combinations=ALL):
            for losses in found:
                assert losses == pytest.approx(expected, rel=1e-6)


def test_whoever_cuts_a_shared_sequence_the_losses_are_those_of_one_rank(dist_run):
    check(dist_run, 2, ["ulysses_cp_algo", "megatron_cp_algo"])


def own_step_worker(algo, model_cuts, loader_cuts):
    """Losses with a forward step of Megatron's kind, which calls its model itself."""
    parallel_state.destroy_model_parallel()
    flags = ["--context-parallel-size", "2", "--context-parallel-algo", algo] if algo else []
    pipeline_runs.start("llama", ["--num-attention-heads", "4", *flags])
    kind, read = CuttingModel if model_cuts else GPTModel, get_batch if loader_cuts else whole_batch
    steps = []

    def own_step(data_iterator, model):
        return model(**read(data_iterator)), lambda loss: (loss, {"lm loss": loss})

    class Endless:
        def __iter__(self):
            return pipeline_runs.micro_batches()

    pretrain(
        None,
        lambda pre_process, post_process: kind(
            get_all_config().model_config, pre_process=pre_process, post_process=post_process
        ),
        forward_step_func=own_step,
        all_config=get_all_config(),
        train_data_loader=Endless(),
        on_step=steps.append,
    )
    return [step.losses["lm loss"] for step in steps]


def test_a_step_of_the_users_own_has_the_losses_of_one_rank(dist_run):
    cuts = {"model_cuts": True, "loader_cuts": False}
    (expected,) = dist_run(own_step_worker, ranks=1, algo=None, **cuts)
    *_, found = dist_run(own_step_worker, ranks=2, algo="ulysses_cp_algo", **cuts)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("algo", "model_cuts", "loader_cuts", "line"),
    [
        ("ulysses_cp_algo", True, True, "it cuts what is cut"),
        ("ulysses_cp_algo", False, False, "cut whole sequences with"),
        ("megatron_cp_algo", True, False, "a contiguous part of the sequence"),
    ],
)
def test_a_step_of_the_users_own_gets_its_parts_compared(
    dist_run, algo, model_cuts, loader_cuts, line
):
    with pytest.raises(RankFailure, match=line):
        dist_run(
            own_step_worker, ranks=2, algo=algo, model_cuts=model_cuts, loader_cuts=loader_cuts
        )


@pytest.mark.slow
def test_four_ranks_that_share_a_sequence_by_both_ways(dist_run):
    check(dist_run, 4, ["hybrid_cp_algo"])
