# SPDX-License-Identifier: Apache-2.0
"""Flags of the training loop that only several ranks show."""

from pathlib import Path

import pytest
from checkpoint_runs import NO_DROPOUT as NONE
from checkpoint_runs import run
from run_builder import configuration, open_run

from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.training.checkpoint_target import is_converted

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


def conversion_worker(folder):
    cache, first = f"{folder}/cache", f"{folder}/first"
    tensor = ["--tensor-model-parallel-size", "2"]
    whole = run(
        "llama",
        [*tensor, *NONE, "--save", first, "--save-interval", "2", "--exit-interval", "2"],
        cache,
    )
    given = ["--load", first, *NONE]
    taken = ["--use-checkpoint-args", "--use-mp-args-from-checkpoint-args"]
    same = run("llama", [*given, *taken, "--exit-interval", "3"], cache)["loss"]
    sizes = get_all_config().parallel_config.tensor_model_parallel_size
    found = []
    for kind in ("torch", "torch_dist"):
        words = ["--ckpt-convert-format", kind, "--ckpt-convert-save", f"{folder}/made"]
        nothing = run("llama", [*given, *words], cache)
        made = f"{folder}/made/{kind}"
        files = sorted(path.name for path in Path(made).rglob("*") if path.is_file())
        loss = run("llama", ["--load", made, *NONE, "--exit-interval", "3"], cache)["loss"]
        found.append((nothing["loss"], "model_optim_rng.pt" in files, loss))
    return whole["loss"], sizes, same, found


@pytest.mark.slow
def test_what_is_loaded_is_written_in_another_format(dist_run, tmp_path):
    whole, sizes, same, found = dist_run(
        conversion_worker, ranks=2, timeout=240.0, folder=str(tmp_path)
    )[-1]
    assert sizes == 2 and list(whole) == [1, 2] and list(same) == [3]
    assert [one[:2] for one in found] == [({}, True), ({}, False)]
    for _, _, loss in found:
        assert loss[3] == pytest.approx(same[3], rel=1e-6)


@pytest.mark.parametrize("missing", ["--load", "--ckpt-convert-save"])
def test_a_conversion_says_what_it_lacks(tmp_path, missing):
    given = {"--load": str(tmp_path), "--ckpt-convert-save": str(tmp_path)}
    words = [word for flag, path in given.items() if flag != missing for word in (flag, path)]
    config = configuration("--ckpt-convert-format", "torch", *words)
    with pytest.raises(ValueError, match=f"--ckpt-convert-format torch needs {missing}; name"):
        is_converted(config)
