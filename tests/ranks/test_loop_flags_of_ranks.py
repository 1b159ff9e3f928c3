# SPDX-License-Identifier: Apache-2.0
"""Flags of the training loop that only several ranks show."""

import pytest
from checkpoint_runs import run
from run_builder import open_run

DROPOUT = ("--attention-dropout", "0.1", "--hidden-dropout", "0.1")
APART = "--data-parallel-random-init"
pytestmark = pytest.mark.ranks


def replicas_worker(folder):
    cache = f"{folder}/cache"
    saved = ["--save", folder, "--save-interval", "4"]
    return [
        run("gpt2", flags, cache)["loss"]
        for flags in (
            [*DROPOUT, "--exit-interval", "1"],
            [*DROPOUT, APART],
            ["--attention-dropout", "0", "--hidden-dropout", "0", "--exit-interval", "1"],
            ["--attention-dropout", "0", "--hidden-dropout", "0", "--exit-interval", "1", APART],
            [*DROPOUT, APART, *saved, "--exit-interval", "4"],
            [*DROPOUT, APART, *saved, "--load", folder],
        )
    ]


def test_replicas_draw_apart_and_go_on_so(dist_run, tmp_path):
    together, apart, plain, same, first, second = dist_run(
        replicas_worker, ranks=2, timeout=240.0, folder=str(tmp_path)
    )[-1]
    assert together[1] != apart[1]
    assert plain == same  # and so have the same initial weights
    assert first | second == apart


def evaluation_worker(layout, size):
    flags = ("--train-iters", "1", "--eval-iters", "1", "--global-batch-size", "4")
    run_, _ = open_run(*flags, *layout, "--eval-micro-batch-size", size)
    with run_:
        return run_.evaluate()[0]["lm loss"], run_._data.valid[0].num_microbatches


@pytest.mark.parametrize(
    "layout",
    [
        ("--pipeline-model-parallel-size", "2"),
        (
            *("--pipeline-model-parallel-size", "2"),
            *("--num-layers-per-virtual-pipeline-stage", "2"),
        ),
    ],
    ids=["pp2", "vpp2"],
)
def test_stages_exchange_the_micro_batches_of_an_evaluation(dist_run, layout):
    one = dist_run(evaluation_worker, ranks=2, layout=layout, size="1")
    two = dist_run(evaluation_worker, ranks=2, layout=layout, size="2")
    assert [count for _, count in one + two] == [4, 4, 2, 2]
    assert one[0][0] == pytest.approx(two[0][0], rel=1e-5)
