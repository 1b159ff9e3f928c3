# SPDX-License-Identifier: Apache-2.0
"""The trainer: its verbs, strategies, callbacks, data and messages, on one rank."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import nn
from mindspore.dataset import GeneratorDataset
from mindspore.mindrecord import FileWriter
from mindspore.train import (
    Callback,
    LearningRateScheduler,
    LossMonitor,
    ReduceLROnPlateau,
    SummaryCollector,
)
from safetensors.numpy import load_file
from tiny_models import TINY_GPT2

import mindspeed_ms
from mindspeed_ms import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    PeftModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    init_context,
    merge_adapter,
)
from mindspeed_ms.backend import bars, memory
from mindspeed_ms.toolkit import context

ROOT = Path(mindspeed_ms.__file__).parents[1]
TINY = {**TINY_GPT2, "hidden_dropout_rate": 0.1, "attention_dropout_rate": 0.1}
ROWS = np.random.default_rng(0).integers(0, 64, (24, 17), dtype=np.int32)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def arguments(**given):
    defaults = {"batch_size": 4, "learning_rate": 1e-2, "max_steps": 4, "save_strategy": "no"}
    return TrainingArguments(**{**defaults, **given})


def trainer(model=TINY, train_dataset=ROWS, callbacks=None, **given):
    others = {
        name: given.pop(name)
        for name in ("eval_dataset", "tokenizer", "task", "pet_method", "lora_config")
        if name in given
    }
    return Trainer(
        model=model,
        args=arguments(**given),
        train_dataset=train_dataset,
        callbacks=callbacks,
        **others,
    )


def losses(made):
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


# ---- one loop ----


def test_there_is_one_training_loop():
    for path in (ROOT / "mindspeed_ms" / "toolkit").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"optimizer\.step|run_backward|forward_backward", text), path


def test_training_learns_and_says_where_it_stands():
    made = trainer(max_steps=12, num_train_epochs=2)
    result = made.train()
    found = losses(made)
    assert result.global_step == 12 and len(found) == 12
    assert found[0] == pytest.approx(np.log(64), abs=0.1) and found[-1] < found[0]
    assert result.training_loss == pytest.approx(np.mean(found))
    assert made.state.epoch == 2.0 and result.metrics["epoch"] == 2.0


def test_passes_become_steps():
    made = trainer(max_steps=-1, num_train_epochs=1.5)
    assert made.train().global_step == 9  # 1.5 times 24 rows in batches of 4


def test_the_rows_of_a_pass_are_shuffled_unless_told_otherwise():
    in_order = trainer(train_sampling_strategy="sequential")
    shuffled, again = trainer(), trainer()
    for made in (in_order, shuffled, again):
        made.train()
    assert losses(shuffled) == losses(again) != losses(in_order)


# ---- evaluation ----


def test_every_row_is_evaluated_once():
    """Seven rows in micro-batches of four: one is filled up, and counts nothing."""
    made = trainer(eval_dataset=ROWS[:7])
    made.train()
    whole = made.evaluate()
    parts = [made.evaluate(ROWS[first : first + 1])["loss"] for first in range(7)]
    assert whole["loss"] == pytest.approx(np.mean(parts), rel=1e-6)
    assert whole["PPL"] == pytest.approx(math.exp(whole["loss"]))


def test_evaluation_alone_reads_weights(capsys):
    trained = trainer(save_strategy="steps", eval_dataset=ROWS[:8])
    trained.train()
    expected = trained.evaluate()
    alone = trainer(train_dataset=None, eval_dataset=ROWS[:8])
    assert alone.evaluate(eval_checkpoint=True) == pytest.approx(expected, rel=1e-6)
    capsys.readouterr()
    fresh = trainer(train_dataset=None, eval_dataset=ROWS[:8])
    assert fresh.evaluate()["loss"] == pytest.approx(np.log(64), abs=0.2)
    assert "what is evaluated is random" in capsys.readouterr().out


def test_strategies_say_when(capsys):
    class Events(TrainerCallback):
        seen = []

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            self.seen.append(("evaluate", state.global_step))
            assert metrics["eval_PPL"] == pytest.approx(math.exp(metrics["eval_loss"]))

        def on_save(self, args, state, control, **kwargs):
            self.seen.append(("save", state.global_step))

        def on_epoch_end(self, args, state, control, **kwargs):
            self.seen.append(("epoch", state.global_step))

        def on_log(self, args, state, control, logs, **kwargs):
            if "loss" in logs:
                self.seen.append(("log", state.global_step))

    made = trainer(
        callbacks=Events,
        max_steps=12,
        eval_strategy="steps",
        eval_steps=5,
        save_strategy="epoch",
        logging_steps=4,
        logging_first_step=True,
        eval_dataset=ROWS[:4],
    )
    made.train()
    seen = Events.seen
    assert [step for name, step in seen if name == "log"] == [1, 4, 8, 12]
    assert [step for name, step in seen if name == "evaluate"] == [5, 10]
    assert [step for name, step in seen if name == "epoch"] == [6, 12]
    assert [step for name, step in seen if name == "save"] == [6, 12]
    assert sorted(path.name for path in Path("output").glob("iter_*"))


# ---- checkpoints ----


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_resuming_goes_on_bit_for_bit(optim):
    kept = {"save_strategy": "steps", "optim": optim, "max_steps": 10}
    whole = trainer(save_steps=4, output_dir="whole", **kept)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    first = trainer(callbacks=[Stop()], output_dir="parts", **kept)
    assert first.train().global_step == 5
    second = trainer(output_dir="parts", **kept)
    second.train(resume_from_checkpoint=True)
    assert losses(second) == losses(whole)  # the first five are those of the earlier part


def test_resuming_in_the_middle_of_a_minddata_pass():
    def dataset():
        return GeneratorDataset(lambda: iter(ROWS), column_names=["input_ids"]).batch(4)

    given = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(train_dataset=dataset(), max_steps=10, **given, output_dir="whole")
    whole.train()
    part = trainer(train_dataset=dataset(), max_steps=10, **given, output_dir="part")
    part.add_callback(EndAt(8))
    part.train()
    rest = trainer(train_dataset=dataset(), max_steps=10, **given, output_dir="part")
    rest.train(resume_training=True)
    assert losses(rest) == losses(whole)


class EndAt(Callback):
    """Ends training, as a callback of MindSpore's does."""

    def __init__(self, step):
        self.step = step

    def step_end(self, run_context):
        if run_context.original_args().cur_step_num == self.step:
            run_context.request_stop()


def test_the_best_model_stays_and_is_loaded():

    class Worse(TrainerCallback):
        """Spoils the weights, so that later evaluations are worse."""

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step >= 4:
                for parameter in model.trainable_params():
                    memory.as_numpy(parameter)[...] *= 1.5

    made = trainer(
        max_steps=8,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        load_best_model_at_end=True,
        eval_dataset=ROWS[:8],
        callbacks=[Worse()],
    )
    made.train()
    values = [e["eval_loss"] for e in made.state.log_history if "eval_loss" in e]
    best = int(np.argmin(values))
    assert best < 3 and made.state.best_global_step == 2 * (best + 1)
    assert Path(made.state.best_model_checkpoint).is_dir()
    assert made.evaluate()["loss"] == pytest.approx(values[best], rel=1e-6)
    read = TrainerState.load_from_json("output/trainer_state.json")
    assert read.best_metric == made.state.best_metric


def test_early_stopping():
    made = trainer(
        max_steps=20,
        learning_rate=1e-12,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=ROWS[:4],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=1.0)],
    )
    assert made.train().global_step == 6
    with pytest.raises(ValueError, match="EarlyStoppingCallback needs evaluations"):
        trainer(callbacks=[EarlyStoppingCallback()]).train()


def test_finetuning_starts_from_weights():
    trainer(max_steps=6, save_strategy="steps").train()
    tuned = trainer(max_steps=2, output_dir="tuned")
    tuned.finetune(finetune_checkpoint="output")
    fresh = trainer(max_steps=2, output_dir="fresh")
    fresh.train()
    assert losses(tuned)[0] < losses(fresh)[0] - 0.05
    with pytest.raises(ValueError, match="finetune starts from weights; give finetune_checkpoint"):
        trainer().finetune()


def test_lora_trains_adapters_beside_weights_that_stay_as_they_are():
    base = trainer(max_steps=4, save_strategy="steps")
    base.train()
    base.save_model("base")
    lora = {"r": 8, "lora_alpha": 16, "exclude_modules": ["o_proj"]}
    tuned = trainer(max_steps=6, output_dir="tuned", pet_method="lora", lora_config=lora)
    tuned.finetune(finetune_checkpoint="output")
    tuned.save_model("adapter")
    assert not Path("adapter/model.safetensors").exists()
    written = load_file("adapter/adapter_model.safetensors")
    assert written and all(".lora_A." in name or ".lora_B." in name for name in written)
    whole = AutoModelForCausalLM.from_pretrained("base")
    adapted = PeftModel.from_pretrained(whole, "adapter")
    before, after = (trainer(model=model).evaluate(ROWS)["loss"] for model in (whole, adapted))
    assert before == pytest.approx(base.evaluate(ROWS)["loss"], abs=1e-6)
    assert after == pytest.approx(tuned.evaluate(ROWS)["loss"], abs=1e-6)
    assert after < before - 0.01
    merge_adapter(adapted)
    with pytest.raises(ValueError, match="a run would add them again; .* unmerge_adapter"):
        trainer(model=adapted).evaluate(ROWS)


# ---- callbacks ----


def test_callbacks_of_mindspore(capsys):
    class Seen(Callback):
        events = []

        def __getattribute__(self, name):
            if name in ("begin", "end", "epoch_begin", "epoch_end", "step_begin", "step_end"):
                return lambda context: self.events.append(
                    (name, context.original_args().cur_step_num)
                )
            return super().__getattribute__(name)

    made = trainer(callbacks=[Seen(), LossMonitor()], max_steps=2)
    made.train()
    names = [name for name, _ in Seen.events]
    assert names == [
        "begin",
        "epoch_begin",
        "step_begin",
        "step_end",
        "step_begin",
        "step_end",
        "epoch_end",
        "end",
    ]
    printed = re.findall(r"step: (\d+), loss is ([\d.]+)", capsys.readouterr().out)
    assert [float(value) for _, value in printed] == pytest.approx(losses(made))


def test_a_failing_callback_leaves_nothing_open():
    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("mine")

    made = trainer(callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="mine"):
        made.train()
    made.pop_callback(Fails)
    assert made.train().global_step == 4


def test_events_that_never_come_are_said(capsys):
    class Waits(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            raise AssertionError

    trainer(callbacks=[Waits()], max_steps=1).train()
    assert "Waits.on_substep_end is never called" in capsys.readouterr().out


# ---- data ----


def mindrecord(folder, shards):
    folder.mkdir()
    writer = FileWriter(str(folder / "rows.mindrecord"), shard_num=shards)
    writer.add_schema({"input_ids": {"type": "int32", "shape": [17]}}, "rows")
    writer.write_raw_data([{"input_ids": row} for row in ROWS])
    writer.commit()
    return folder


@pytest.mark.parametrize("shards", [1, 4])
def test_folders_of_records(tmp_path, shards):
    folder = mindrecord(tmp_path / "train", shards)
    by_file, by_rows = trainer(train_dataset=str(folder)), trainer()
    by_file.train()
    by_rows.train()
    assert losses(by_file) == losses(by_rows)


def test_a_record_without_its_index_is_named(tmp_path):
    folder = mindrecord(tmp_path / "train", 4)
    (folder / "rows.mindrecord2.db").unlink()
    with pytest.raises(ValueError, match=r"rows.mindrecord2.db is missing beside .*2; copy both"):
        trainer(train_dataset=str(folder))


def test_two_batched_datasets_of_one_generator():
    dataset = GeneratorDataset(lambda: iter(ROWS), column_names=["input_ids"])
    made = trainer(train_dataset=dataset.batch(4), eval_dataset=dataset.batch(4))
    made.train()
    expected = trainer(train_sampling_strategy="sequential", eval_dataset=ROWS)
    expected.train()
    assert losses(made) == losses(expected)
    assert made.evaluate() == pytest.approx(expected.evaluate(), rel=1e-6)


def test_the_batch_of_a_dataset_is_that_of_a_step(monkeypatch):
    dataset = GeneratorDataset(lambda: iter(ROWS), column_names=["input_ids"]).batch(12)
    made = trainer(train_dataset=dataset, batch_size=2, max_steps=-1, num_train_epochs=1)
    assert made.train().global_step == 2
    monkeypatch.setattr(context, "_ASKED", context._Asked())
    assert init_context(True, None, {"parallel_mode": "SEMI_AUTO_PARALLEL"}) == (0, 1)
    made = trainer(train_dataset=dataset, batch_size=2)
    made.set_parallel_config(micro_batch_num=5)
    with pytest.raises(ValueError, match=r"batches of 12 rows, .* 5 micro-batches = 5 parts"):
        made.train()


def test_rows_of_another_length():
    with pytest.raises(ValueError, match="a row has 21 tokens, but seq_length is 16"):
        trainer(train_dataset=[{"input_ids": list(range(21))}] * 4).train()


def test_labels_as_transformers_has_them():
    ids = ROWS[0].tolist()
    hidden = [{"input_ids": ids, "labels": [-100] * 16 + ids[16:]}] * 4
    made = trainer(max_steps=1, eval_dataset=hidden)
    made.train()
    one = made.evaluate()["loss"]
    plain = made.evaluate([{"input_ids": ids}] * 4)["loss"]
    assert one != pytest.approx(plain)
    with pytest.raises(ValueError, match="labels differ from input_ids"):
        made.evaluate([{"input_ids": ids, "labels": ids[1:] + [0]}])


class OwnConfig:
    seq_length, vocab_size = 16, 64


class Bigrams(nn.Cell):
    """A model of the user's own, which returns its loss."""

    config = OwnConfig()

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 64)
        self.loss = nn.CrossEntropyLoss()

    def construct(self, tokens, labels, loss_mask=None, attention_mask=None, position_ids=None):
        return self.loss(self.table(tokens).reshape(-1, 64), labels.reshape(-1).int())


def test_a_cell_of_ones_own():
    model = Bigrams()
    before = model.table.embedding_table.asnumpy().copy()
    made = trainer(model=model)
    made.train()
    assert np.abs(model.table.embedding_table.asnumpy() - before).max() > 0
    made = trainer(model=model)
    made.set_parallel_config(model_parallel=1)
    assert made.train().global_step == 4


# ---- plan ----


def test_the_plan_builds_nothing(capsys):
    made = trainer()
    made.set_parallel_config(model_parallel=2, pipeline_stage=2, micro_batch_num=2)
    plan = made.plan(world_size=4, memory_gb=1, suggest=True)
    text = capsys.readouterr().out
    assert plan.config.parallel_config.tensor_model_parallel_size == 2
    assert "4 ranks = tensor 2" in text and "memory of a rank" in text
    with pytest.raises(
        ValueError, match=r"data_parallel 1 x model_parallel 2 .* there are 8 ranks"
    ):
        made.plan(world_size=8)


# ---- arguments and messages ----


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"learning_rat": 1},
            TypeError,
            "no argument 'learning_rat'; did you mean 'learning_rate'",
        ),
        ({"eval_strategy": "sometimes"}, ValueError, "eval_strategy is 'sometimes'; use no, steps"),
        ({"save_steps": 0}, ValueError, "save_steps is 0, but must be a number above 0"),
        ({"fp16": True, "bf16": True}, ValueError, "fp16 and bf16 are both True"),
        ({"report_to": "mlflow"}, ValueError, "report_to names 'mlflow'"),
        ({"deepspeed": "ds.json"}, ValueError, "set_parallel_config shards the optimizer"),
        ({"load_best_model_at_end": True}, ValueError, "needs a checkpoint of every evaluation"),
        ({"train_sampling_strategy": "group_by_length"}, ValueError, "use random or sequential"),
    ],
)
def test_arguments_that_cannot_be(given, error, message):
    with pytest.raises(error, match=message):
        TrainingArguments(**given)


def test_arguments_have_the_names_and_defaults_of_others():
    made = TrainingArguments("here", evaluation_strategy="epoch", dataloader_pin_memory=True)
    assert (made.output_dir, made.eval_strategy, made.learning_rate) == ("here", "epoch", 5e-5)
    assert made.num_train_epochs == 3.0 and made.train_batch_size == 8 and made.save_steps == 500
    assert made.dataloader_pin_memory is True and made.tf32 is None
    assert TrainingArguments(per_device_train_batch_size=2).train_batch_size == 2


class Curves(SummaryCollector):
    def __init__(self):
        """A collector of a folder, which would be made."""


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"task": "translation"}, ValueError, "task 'translation' is not available"),
        ({"pet_method": "ia3"}, ValueError, "pet_method 'ia3': use '' or 'lora'"),
        ({"model": None}, ValueError, "Trainer needs a model"),
        ({"model": "gtp2"}, OSError, "nothing found for 'gtp2'.* one of the sizes gpt2,"),
        ({"compute_metrics": len}, ValueError, "evaluation is of loss and perplexity"),
        ({"callback": []}, TypeError, "no argument 'callback'; did you mean 'callbacks'"),
        ({"train_dataset": "none"}, ValueError, "train_dataset: none is no folder"),
        ({"callbacks": 3}, TypeError, "3 is no callback"),
        (
            {"callbacks": LearningRateScheduler(lambda rate, step: rate)},
            *(ValueError, "callback LearningRateScheduler: .* say the rate: lr_scheduler_type"),
        ),
        (
            {"callbacks": [LossMonitor(), ReduceLROnPlateau(monitor="loss")]},
            *(ValueError, "callback ReduceLROnPlateau: there is no optimizer of MindSpore's"),
        ),
        ({"callbacks": Curves}, ValueError, "callback Curves: .* report_to=.tensorboard"),
    ],
)
def test_trainers_that_cannot_be(given, error, message):
    with pytest.raises(error, match=message):
        Trainer(**{"model": TINY, **given})


def test_what_is_missing_for_a_verb():
    with pytest.raises(ValueError, match="train needs data; give train_dataset"):
        Trainer(model=TINY).train()
    with pytest.raises(ValueError, match="nothing to evaluate; give eval_dataset"):
        Trainer(model=TINY).evaluate()
    with pytest.raises(
        ValueError, match="eval_strategy is epoch, but there is nothing to evaluate"
    ):
        trainer(eval_strategy="epoch").train()


def test_what_has_no_effect_is_said_once(capsys):
    made = trainer(dataloader_pin_memory=False, sink_mode=True, tf32=True)
    made.train()
    made.train()
    text = capsys.readouterr().out
    assert text.count("tf32: no effect, it is a mode of another device") == 1
    assert text.count("sink_mode: no effect") == 1


def test_a_warm_up_may_be_longer_than_the_run(capsys):
    made = trainer(warmup_steps=1000, max_steps=3)
    made.train()
    rates = [one["learning_rate"] for one in made.state.log_history if "learning_rate" in one]
    assert rates == pytest.approx([0, 1e-5, 2e-5])
    assert "warmup_steps 1000 is not shorter than the run of 3 steps" in capsys.readouterr().out


def test_the_log_line_of_mindformers(capsys):
    trainer(log_style="mindformers", max_steps=2).train()
    lines = [one for one in capsys.readouterr().out.splitlines() if one.startswith("{ Epoch:")]
    pattern = r"{ Epoch:\[ +1/ +\d+\], step:\[ +1/ +\d+\], loss:\[4\.\d+/4\.\d+\], "
    pattern += r"per_step_time: \d+ms, lr: [\d.e-]+, overflow cond: False, loss_scale: 1.0"
    assert len(lines) == 2 and re.fullmatch(pattern, lines[0])


def test_a_bar_may_be_refused(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    seen = []

    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            with bars.bar("looking", 1) as drawn:
                seen.append(drawn is not bars.SILENT)

    pytest.importorskip("tqdm")
    trainer(max_steps=1, callbacks=Looks).train()
    trainer(max_steps=1, callbacks=Looks, disable_tqdm=True).train()
    assert seen == [True, False]


def test_curves_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    trainer(report_to="tensorboard", output_dir="out", max_steps=2).train()
    assert list(Path("out/runs").glob("events.out.tfevents.*"))


def test_a_resumed_run_keeps_the_rows_of_its_embedding():
    """A vocabulary that ranks cannot share is filled up, which the loss feels."""
    odd = {**TINY, "vocab_size": 61}
    rows = ROWS % 61
    whole = trainer(odd, rows, save_strategy="steps", max_steps=6, output_dir="whole")
    whole.train()
    part = trainer(odd, rows, save_strategy="steps", max_steps=6, output_dir="part")
    part.add_callback(EndAt(3))
    part.train()
    rest = trainer(odd, rows, save_strategy="steps", max_steps=6, output_dir="part")
    rest.train(resume_from_checkpoint=True)
    assert losses(rest) == losses(whole)
