# SPDX-License-Identifier: Apache-2.0
"""The trainer on several ranks: every layout trains and evaluates as one rank does."""

import numpy as np
import pytest
from mindspore.dataset import GeneratorDataset

from mindspeed_ms import Trainer, TrainerCallback, TrainingArguments, init_context
from mindspeed_ms.toolkit import context

pytestmark = pytest.mark.ranks

TINY = {
    "type": "GPT2Config",
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "seq_length": 16,
    "vocab_size": 61,  # which two ranks cannot share
    "compute_dtype": "float32",
    "hidden_dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
}
ROWS = np.random.default_rng(0).integers(0, 61, (26, 17), dtype=np.int32)


def drawn():
    """Rows drawn at random while they are read, as in the guide."""
    for _ in range(24):
        yield np.random.randint(low=0, high=60, size=(17,)).astype(np.int32)


class StopAt(TrainerCallback):
    """Asks on one rank only."""

    def __init__(self, step, rank):
        self.step, self.rank = step, rank

    def on_step_end(self, args, state, control, **kwargs):
        mine = state.is_world_process_zero == (self.rank == 0)
        control.should_training_stop = mine and state.global_step == self.step


def worker(mode=None, sizes=None, kind="rows", batch=8, folder="output", stop=None, **given):
    """Losses of the steps, and what evaluation says."""
    context._ASKED.parallel = None
    if mode is not None:
        init_context(True, None, {"parallel_mode": mode, "full_batch": mode[0] != "D"})
    data, held_back = ROWS[:24], ROWS[19:]
    if kind == "generator":
        data = GeneratorDataset(drawn, column_names=["input_ids"]).batch(8)
        held_back = GeneratorDataset(lambda: iter(ROWS[19:]), column_names=["input_ids"]).batch(1)
    args = {"learning_rate": 1e-2, "max_steps": 4, "save_strategy": "no", "output_dir": folder}
    made = Trainer(
        model=TINY,
        args=TrainingArguments(**{**args, "batch_size": batch, **given}),
        train_dataset=data,
        eval_dataset=held_back,
        callbacks=None if stop is None else [StopAt(*stop)],
    )
    if sizes is not None:
        made.set_parallel_config(**sizes)
    resumed = given.get("resume_from_checkpoint")
    made.train(resume_from_checkpoint=resumed)
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    found = losses, made.evaluate()["loss"], made.state.global_step
    made.close()
    return found


SIZES = {"model_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 4}
SHARED = {"data_parallel": 2, "model_parallel": 2, "use_seq_parallel": True}
LAYOUTS = {
    "tp2 pp2": ("SEMI_AUTO_PARALLEL", SIZES, 2),
    "dp2 tp2": ("SEMI_AUTO_PARALLEL", {**SHARED, "optimizer_shard": True}, 4),
    "data parallel": ("DATA_PARALLEL", None, 2),
    "nothing said": (None, None, 2),
    "auto": ("AUTO_PARALLEL", None, 2),
}
"""Name -> mode, sizes, sequences of a micro-batch: a step always has eight."""


@pytest.fixture(scope="module")
def alone():
    return {kind: worker(kind=kind) for kind in ("rows", "generator")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_trains_as_one_rank(dist_run, alone, name):
    mode, sizes, batch = LAYOUTS[name]
    for losses, evaluated, steps in dist_run(worker, mode=mode, sizes=sizes, batch=batch):
        assert steps == 4
        np.testing.assert_allclose(losses, alone["rows"][0], rtol=1e-5)
        assert evaluated == pytest.approx(alone["rows"][1], rel=1e-5)


@pytest.mark.parametrize("name", ["tp2 pp2", "dp2 tp2"])
def test_rows_drawn_at_random_are_the_same_on_all_ranks(dist_run, alone, name):
    mode, sizes, batch = LAYOUTS[name]
    every = dist_run(worker, mode=mode, sizes=sizes, batch=batch, kind="generator")
    for losses, evaluated, _ in every:
        np.testing.assert_allclose(losses, alone["generator"][0], rtol=1e-5)
        assert evaluated == pytest.approx(alone["generator"][1], rel=1e-5)


def test_one_rank_may_stop_all(dist_run):
    mode, sizes, batch = LAYOUTS["tp2 pp2"]
    every = dist_run(worker, mode=mode, sizes=sizes, batch=batch, stop=(2, 0))
    assert [steps for _, _, steps in every] == [2] * 4


def test_a_run_goes_on_in_another_layout(dist_run, alone, tmp_path):
    mode, sizes, batch = LAYOUTS["tp2 pp2"]
    given = {"folder": str(tmp_path), "save_strategy": "steps"}
    dist_run(worker, mode=mode, sizes=sizes, batch=batch, stop=(2, 0), **given)
    mode, sizes, batch = LAYOUTS["dp2 tp2"]
    given["resume_from_checkpoint"] = str(tmp_path)
    for losses, _, steps in dist_run(worker, mode=mode, sizes=sizes, batch=batch, **given):
        assert steps == 4
        np.testing.assert_allclose(losses, alone["rows"][0], rtol=1e-5)
