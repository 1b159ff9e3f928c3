# SPDX-License-Identifier: Apache-2.0
"""What settings of a trainer change in a run, beside the values that they leave alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_models import TINY_GPT2

from mindspeed_ms import Trainer, TrainerCallback, TrainingArguments
from mindspeed_ms.legacy.model.attention import CoreAttention
from mindspeed_ms.legacy.model.transformer import ParallelTransformerLayer

TINY = dict(TINY_GPT2)
ROWS = np.random.default_rng(0).integers(0, 64, (8, 17), dtype=np.int32)


def calls_and_losses(monkeypatch, **recompute):
    """Forward passes of layers and of their attention in two steps, and the losses of these."""
    seen = Counter()
    for kind in (ParallelTransformerLayer, CoreAttention):

        def counted(self, *given, made=kind, construct=kind.construct, **named):
            seen[made.__name__] += 1
            return construct(self, *given, **named)

        monkeypatch.setattr(kind, "construct", counted)
    arguments = TrainingArguments(batch_size=4, max_steps=2, save_strategy="no", logging_steps=1)
    made = Trainer(model=TINY, args=arguments, train_dataset=ROWS)
    if recompute:
        made.set_recompute_config(**recompute)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    return seen["ParallelTransformerLayer"], seen["CoreAttention"], losses


@pytest.mark.parametrize(
    ("recompute", "layers", "cores"),
    [
        ({"recompute": True}, 2, 2),
        ({"recompute": False, "select_recompute": True}, 1, 2),
        ({"recompute": False, "select_recompute": False}, 1, 1),
    ],
)
def test_what_is_recomputed_runs_again(recompute, layers, cores, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        plain = calls_and_losses(patch)
    with monkeypatch.context() as patch:
        found = calls_and_losses(patch, **recompute)
    assert plain[:2] == (4, 4)  # two layers, two steps
    assert found[:2] == (4 * layers, 4 * cores)
    assert found[2] == plain[2] and len(plain[2]) == 2


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_a_callback_may_ask_for_a_checkpoint(strategy, tmp_path, monkeypatch, capsys):
    class Save(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = True

    monkeypatch.chdir(tmp_path)
    arguments = TrainingArguments(batch_size=4, max_steps=2, save_strategy=strategy)
    Trainer(TINY, arguments, train_dataset=ROWS, callbacks=Save()).train()
    found = [path.name for path in Path("output").glob("iter_*")]
    assert sorted(found) == ([] if strategy == "no" else ["iter_0000001", "iter_0000002"])
    line = "should_save: no effect with save_strategy no; choose another one"
    assert capsys.readouterr().out.count(line) == (strategy == "no")
