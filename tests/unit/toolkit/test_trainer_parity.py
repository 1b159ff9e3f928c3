# SPDX-License-Identifier: Apache-2.0
"""The trainer computes what ``transformers`` does, and models stay in the user's hands."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import record_trainer as recorded
from safetensors.numpy import save_file

from mindspeed_ms import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

EXPECTED = json.loads(recorded.FILE.read_text(encoding="utf-8"))
DATA = [{"input_ids": row} for row in recorded.training_rows()]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A model as ``save_pretrained`` of ``transformers`` leaves it."""
    path = tmp_path / "tiny"
    path.mkdir()
    save_file(recorded.weights(), path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(recorded.CONFIG))
    return str(path)


def arguments(**given):
    defaults = {
        "per_device_train_batch_size": recorded.BATCH,
        "learning_rate": recorded.RATE,
        "warmup_steps": recorded.WARMUP,
        "weight_decay": recorded.DECAY,
        "max_steps": recorded.STEPS,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
    }
    return TrainingArguments(**{**defaults, **given})


def losses(made):
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_evaluation_equals_transformers(folder, batch):
    args = TrainingArguments(per_device_eval_batch_size=batch)
    metrics = Trainer(model=folder, args=args, eval_dataset=recorded.rows()).evaluate()
    assert metrics["loss"] == pytest.approx(EXPECTED["loss"], rel=1e-5)
    assert metrics["PPL"] == pytest.approx(math.exp(EXPECTED["loss"]), rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_training_equals_transformers(folder, parts):
    """Also where the rows of a step are accumulated."""
    args = arguments(
        per_device_train_batch_size=recorded.BATCH // parts, gradient_accumulation_steps=parts
    )
    made = Trainer(model=folder, args=args, train_dataset=DATA)
    made.train()
    np.testing.assert_allclose(losses(made), EXPECTED["losses"], rtol=1e-5)


@pytest.mark.parametrize("case", recorded.CASES)
def test_arguments_mean_what_they_mean_in_transformers(folder, case):
    """Every figure that ``transformers.Trainer`` notes: losses, rates, norms, passes."""
    args = TrainingArguments("out", **{**recorded.COMMON, **recorded.CASES[case]})
    rows = recorded.answers()
    made = Trainer(model=folder, args=args, train_dataset=rows, eval_dataset=rows[:5])
    made.train()
    expected = json.loads(recorded.ARGUMENTS.read_text(encoding="utf-8"))[case]
    history = made.state.log_history
    assert len(history) == len(expected)
    for found, entry in zip(history, expected, strict=True):
        assert {key: found[key] for key in entry} == pytest.approx(entry, rel=2e-5, abs=1e-9)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_half_precision_trains_from_the_first_step_on(folder, kind):
    made = Trainer(model=folder, args=arguments(**{kind: True}), train_dataset=DATA)
    made.train()
    np.testing.assert_allclose(losses(made), EXPECTED["losses"], rtol=5e-3)


@pytest.mark.parametrize("asked", ["dropout", "noise"])
@pytest.mark.parametrize("how", ["folder", "model"])
def test_a_model_that_is_trained_is_in_training_mode(folder, how, asked):
    """Dropout and noise are drawn, and evaluation between steps, and afterwards, draws none."""
    path = Path(folder) / "config.json"
    if asked == "dropout":
        path.write_text(json.dumps(recorded.CONFIG | {"resid_pdrop": 0.3}))
    noise = {"neftune_noise_alpha": 5.0} if asked == "noise" else {}
    model = folder if how == "folder" else AutoModel.from_pretrained(folder)
    args = arguments(eval_strategy="steps", eval_steps=2, **noise)
    made = Trainer(model=model, args=args, train_dataset=DATA, eval_dataset=DATA[:2])
    made.train()
    assert np.abs(np.array(losses(made)) - EXPECTED["losses"]).min() > 1e-4
    last = [entry["eval_loss"] for entry in made.state.log_history if "eval_loss" in entry][-1]
    if how == "model":
        assert not model.training
        row = np.array([DATA[0]["input_ids"]])
        np.testing.assert_array_equal(model(row).asnumpy(), model(row).asnumpy())
    assert made.evaluate()["loss"] == last


@pytest.mark.parametrize("how", ["folder", "model", "changed", "config"])
def test_whatever_the_model_is_given_as(folder, how):
    model = folder
    if how in ("model", "changed"):
        model = AutoModel.from_pretrained(folder)
    elif how == "config":
        model = GPT2Config.from_pretrained(folder)
    if how == "changed":
        for param in model.get_parameters():
            param.set_data(param * 0)
    made = Trainer(model=model, args=arguments(), train_dataset=DATA)
    made.train()
    first = {"changed": math.log(64), "folder": EXPECTED["losses"][0]}
    if how == "config":
        assert losses(made)[0] == pytest.approx(math.log(64), abs=0.1)
    else:
        assert losses(made)[0] == pytest.approx(first.get(how, first["folder"]), rel=1e-5)


def test_the_users_model_is_what_was_trained(folder):
    model = AutoModel.from_pretrained(folder)
    made = Trainer(model=model, args=arguments(), train_dataset=DATA, eval_dataset=DATA[:1])
    before = float(model(np.array([DATA[0]["input_ids"]]), labels=[DATA[0]["input_ids"]]).asnumpy())
    assert made.evaluate()["loss"] == pytest.approx(before, rel=1e-5)
    made.train()
    model.set_train(False)
    after = float(model(np.array([DATA[0]["input_ids"]]), labels=[DATA[0]["input_ids"]]).asnumpy())
    assert made.evaluate()["loss"] == pytest.approx(after, rel=1e-5) and after < before
    made.save_model("trained")
    made.close()
    assert made.evaluate()["loss"] == pytest.approx(after, rel=1e-5)
    again = Trainer(model="trained", args=arguments(), eval_dataset=DATA[:1])
    assert again.evaluate()["loss"] == pytest.approx(after, rel=1e-5)


def test_a_cell_of_a_notebook_may_run_again(folder):
    model = GPT2LMHeadModel(GPT2Config.from_pretrained(folder))
    first = Trainer(model=model, args=arguments(max_steps=3), train_dataset=DATA)
    first.train()
    second = Trainer(model=model, args=arguments(max_steps=3), train_dataset=DATA)
    second.train()
    assert losses(second)[0] < losses(first)[0]  # it goes on with the weights in memory


def test_a_long_row_and_a_shorter_sequence(folder):
    long = [{"input_ids": list(range(1, 19))}]
    with pytest.raises(ValueError, match="a row has 18 tokens, but seq_length is 16"):
        Trainer(model=folder, args=arguments(), train_dataset=long).train()
    args = arguments(max_length=8, max_steps=1)
    short = [{"input_ids": row["input_ids"][:9]} for row in DATA]
    made = Trainer(model=folder, args=args, train_dataset=short)

    class Seen(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            assert model.config.seq_length == 8

    made.add_callback(Seen)
    made.train()


def test_training_again_goes_on(folder):
    made = Trainer(model=folder, args=arguments(max_steps=3), train_dataset=DATA)
    with pytest.raises(ValueError, match="there is nothing to save yet"):
        made.save_model("early")
    made.train()
    first = losses(made)
    made.close()
    made.train()
    assert losses(made)[0] < first[0]


def test_layers_for_further_tokens_that_only_the_description_has(capsys):
    """As ``transformers`` saves DeepSeek V3."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 16}
    heads |= {"q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    experts |= {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    lengths = {"vocab_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 16}
    config = AutoConfig.for_model(
        "deepseek_v3", num_nextn_predict_layers=0, **sizes, **heads, **experts, **lengths
    )
    AutoModelForCausalLM.from_config(config).save_pretrained("deepseek")
    path = Path("deepseek") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 1}))
    made = Trainer(model="deepseek", args=arguments(max_steps=2), train_dataset=DATA)
    made.train()
    assert len(losses(made)) == 2
    assert "deepseek has no layers for further tokens" in capsys.readouterr().out


# ---- arguments ----


def test_every_argument_of_transformers_is_known(caplog):
    """At its own value nothing is refused, and nothing is to be said of it."""
    fields = json.loads(recorded.FIELDS.read_text(encoding="utf-8"))
    made = TrainingArguments(**fields)
    assert len(fields) > 100 and made.mapped().notes == ()
    for name, value in fields.items():
        assert TrainingArguments(**{name: value}).mapped().notes == (), name


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("activation_checkpointing", "gradient_checkpointing", True),
        ("evaluation_strategy", "eval_strategy", "epoch"),
        ("per_gpu_train_batch_size", "per_device_train_batch_size", 3),
        ("no_cuda", "use_cpu", True),
    ],
)
def test_arguments_by_another_name(old, new, value):
    assert getattr(TrainingArguments(**{old: value}), new) == value
    assert getattr(TrainingArguments(**{old: value, new: value}), new) == value
    assert getattr(TrainingArguments(**{old: None, new: value}), new) == value
    other = {True: False, "epoch": "no", 3: 4}[value]
    with pytest.raises(ValueError, match=f"{old} is .* and {new} .*; they are one, keep one"):
        TrainingArguments(**{old: value, new: other})


def test_what_is_recomputed_may_be_asked_for_in_torchs_words():
    kinds = {"use_reentrant": False}
    made = TrainingArguments(gradient_checkpointing=True, gradient_checkpointing_kwargs=kinds)
    assert made.mapped().keys["recompute_config.recompute"] is True
    with pytest.raises(ValueError, match="set_recompute_config says what is recomputed"):
        TrainingArguments(activation_checkpointing_kwargs={"every_n_layers": 2})
