# SPDX-License-Identifier: Apache-2.0
"""Models by name: found, loaded, called, trained and saved as in transformers and MindFormers."""

import json
import subprocess
import sys

import hf_models
import mindspore as ms
import numpy as np
import pytest

import mindspeed_ms
from mindspeed_ms import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from mindspeed_ms.backend import autograd
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.training import pretrain

TINY = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "seq_length": 12,
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
"""A GPT-2, in MindFormers' words."""


@pytest.fixture(scope="module")
def expected(request):
    return np.load(request.config.rootpath / "tests" / "data" / "models" / "expected.npz")


@pytest.fixture
def folder(tmp_path):
    def make(kind, **changes):
        hf_models.write(tmp_path / kind, kind, **changes)
        return tmp_path / kind

    return make


# ---- what a model computes ----


@pytest.mark.parametrize("kind", hf_models.CONFIGS)
def test_logits_and_loss_are_those_of_transformers(kind, folder, expected):
    model = AutoModelForCausalLM.from_pretrained(folder(kind))
    ids = hf_models.IDS
    logits = model(ids)
    assert logits.dtype == ms.float32
    np.testing.assert_allclose(logits.asnumpy(), expected[f"{kind}.logits"], atol=2e-5)
    labels = np.where(ids % 5 == 0, -100, ids)
    assert float(model(ids, labels=labels)) == pytest.approx(
        float(expected[f"{kind}.loss"]), abs=1e-5
    )
    both = model(ms.Tensor(ids), labels=labels, return_dict=True)
    np.testing.assert_array_equal(both.logits.asnumpy(), logits.asnumpy())
    assert float(both.loss) == pytest.approx(float(expected[f"{kind}.loss"]), abs=1e-5)


@pytest.mark.parametrize("kind", hf_models.CONFIGS)
def test_generated_tokens_are_those_of_transformers(kind, folder, expected):
    model = AutoModelForCausalLM.from_pretrained(folder(kind))
    model.generation_config.eos_token_id = None
    tokens = model.generate(hf_models.IDS[:, :4], max_new_tokens=8, do_sample=False, pad_token_id=0)
    np.testing.assert_array_equal(np.asarray(tokens), expected[f"{kind}.tokens"])


def test_defaults_of_generation(folder, tmp_path):
    model = AutoModel.from_pretrained(folder("llama"))
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    model.generation_config.temperature = 0.5
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved")
    assert again.generation_config.temperature == 0.5
    assert again.generation_config.eos_token_id == 2
    config = GPT2Config(**TINY, max_decode_length=9, do_sample=True)
    assert GPT2LMHeadModel(config).generation_config.max_length == 9


@pytest.mark.parametrize("kind", hf_models.CONFIGS)
def test_padding_in_front_changes_nothing_behind_it(kind, folder, expected):
    model = AutoModelForCausalLM.from_pretrained(folder(kind))
    mask = hf_models.LEFT_PADDED
    logits = model(
        hf_models.IDS, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clip(0)
    ).asnumpy()
    seen = mask.astype(bool)
    np.testing.assert_allclose(logits[seen], expected[f"{kind}.padded"][seen], atol=2e-5)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "mistral"])
def test_padding_in_front_of_layers_with_and_without_a_window(kind):
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 2} if kind == "gpt_oss" else {}
    config = AutoConfig.for_model(
        kind, vocab_size=64, max_position_embeddings=32, **sizes, **heads, **experts
    )
    model = AutoModelForCausalLM.from_config(config)
    ids = np.random.default_rng(2).integers(3, 64, (1, 12))
    mask = np.pad(np.ones_like(ids), ((0, 0), (3, 0)))
    padded = model(np.pad(ids, ((0, 0), (3, 0))), attention_mask=mask).asnumpy()[:, 3:]
    np.testing.assert_allclose(padded, model(ids).asnumpy(), atol=2e-5)


def test_padding_behind_needs_no_mask(folder):
    model = AutoModel.from_pretrained(folder("llama"))
    ids = hf_models.IDS
    mask = np.ones_like(ids)
    mask[0, 7:] = 0
    padded = model(ids, attention_mask=mask).asnumpy()
    np.testing.assert_array_equal(padded[0, :7], model(ids).asnumpy()[0, :7])


def test_graph_mode_of_a_script_does_not_matter(folder):
    model = AutoModel.from_pretrained(folder("gpt2"))
    before = model(hf_models.IDS).asnumpy()
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        np.testing.assert_array_equal(model(hf_models.IDS).asnumpy(), before)
        assert ms.get_context("mode") == ms.GRAPH_MODE
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[60, 61]]}, "61 rows"),
        ({"input_ids": [[-1, 3]]}, "61 rows"),
        ({"input_ids": np.zeros((1, 2))}, "must be integers"),
        ({"input_ids": np.ones((1, 41), int)}, "learned 40 positions"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, r"labels have shape \[1, 1\]"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "attention_mask has shape"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message, folder):
    model = AutoModel.from_pretrained(folder("gpt2"))
    with pytest.raises(ValueError, match=message):
        model(**inputs)
    with pytest.raises(TypeError, match="did you mean 'labels'"):
        model([[1, 2]], label=[[1, 2]])


# ---- training ----


def rows(steps):
    draw = np.random.RandomState(0)
    return [draw.randint(0, 61, (2, 13)).astype(np.int32) for _ in range(steps)]


@pytest.fixture(scope="module", autouse=True)
def _tape_of_a_script():
    """Off, as where nobody has put the process on the tape; other tests have."""
    flag = autograd._pynative_executor.grad_flag()
    autograd._pynative_executor.set_grad_flag(False)
    yield
    autograd._pynative_executor.set_grad_flag(flag)


def test_the_gradient_is_the_slope_of_the_loss():
    model = GPT2LMHeadModel(GPT2Config(**TINY))
    batch = rows(1)[0]
    model.set_train()
    weights = model.trainable_params()
    loss, gradients = ms.value_and_grad(model, None, weights)(ms.Tensor(batch))
    model.set_train(False)
    plain = model(batch[:, :12], labels=batch[:, :12])  # not the rows' last token
    assert float(loss) != pytest.approx(float(plain), abs=1e-6)
    for weight, gradient in zip(weights, gradients, strict=True):
        values, direction = weight.asnumpy().copy(), np.sign(gradient.asnumpy())
        slopes = []
        for step in (1e-3, -1e-3):
            weight.set_data(ms.Tensor(values + step * direction))
            model.set_train()
            slopes.append(float(model(batch)))
        weight.set_data(ms.Tensor(values))
        slope = (slopes[0] - slopes[1]) / 2e-3
        assert slope == pytest.approx(float(np.abs(gradient.asnumpy()).sum()), rel=2e-2, abs=2e-3)


def test_a_plain_loop_and_pretrain_start_from_the_same_loss():
    config = GPT2Config(**TINY)
    batches = rows(6)
    model = GPT2LMHeadModel(config)
    optimizer = ms.nn.AdamWeightDecay(model.trainable_params(), learning_rate=1e-2)
    step = ms.nn.TrainOneStepCell(model, optimizer)
    step.set_train()
    losses = [float(step(ms.Tensor(batches[0]))) for _ in range(6)]
    assert losses[-1] < losses[0] - 0.5
    fresh, seen = GPT2LMHeadModel(config), []
    sections = {
        "training_config": {"training_iters": 4, "save_checkpoints": False, "eval_iters": 0},
        "dataset_config": {"batch_size": 2},
        "optimizer_config": {"learning_rate": 1e-2},
    }
    pretrain(
        None,
        lambda pre_process, post_process: fresh,
        all_config=config.all_config(sections),
        train_data_loader=[{"input_ids": batches[0]}] * 4,
        on_step=lambda report: seen.append(report.losses["lm loss"]),
    )
    assert seen[0] == pytest.approx(losses[0], abs=1e-6)
    assert seen[-1] < seen[0]
    names = [name for name, _ in fresh.parameters_and_names()]
    assert names[0] == "language_model.embedding.word_embeddings.weight"


def test_a_run_of_another_model_is_refused():
    other = GPT2Config(**{**TINY, "hidden_act": "gelu_erf"}).all_config(
        {"training_config": {"training_iters": 1, "save_checkpoints": False}}
    )
    model = GPT2LMHeadModel(GPT2Config(**TINY))
    with pytest.raises(ValueError, match="describes another model: model_config.hidden_act"):
        pretrain(None, lambda **_: model, all_config=other, train_data_loader=[])


# ---- files ----


@pytest.mark.parametrize("form", ["huggingface", "mindspeed_ms", "megatron", "mindspore"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mixtral"])
def test_a_saved_model_is_the_same_model(kind, form, folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder(kind))
    saved = model.save_pretrained(tmp_path / "saved", format=form)
    again = AutoModelForCausalLM.from_pretrained(saved)
    np.testing.assert_array_equal(again(hf_models.IDS).asnumpy(), model(hf_models.IDS).asnumpy())
    assert not list(saved.glob(".save_*"))
    if form != "megatron":
        assert again.config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("kind", hf_models.CONFIGS)
def test_a_hub_folder_comes_back_bit_by_bit(kind, folder, tmp_path):
    source = folder(kind)
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    assert tensors(tmp_path / "saved") == tensors(source)


def tensors(folder):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    found = load_file(folder / "model.safetensors")
    return {name: (array.shape, array.tobytes()) for name, array in found.items()}


def test_a_changed_value_is_written(folder, tmp_path):
    config = AutoConfig.from_pretrained(folder("llama"), eos_token_id=7)
    config.rope_theta = 500.0
    config.save_pretrained(tmp_path / "c")
    written = json.loads((tmp_path / "c/config.json").read_text())
    assert (written["rope_theta"], written["eos_token_id"]) == (500.0, 7)
    assert written["some_unknown_key"] == {"kept": [1, None]}


def test_mindformers_pair_of_files_is_found_by_name(tmp_path, monkeypatch, folder):
    model = AutoModel.from_pretrained(folder("gpt2"))
    place = tmp_path / "checkpoint_download" / "gpt2"
    model.save_pretrained(place, "gpt2_tiny", format="mindspore")
    assert sorted(item.name for item in place.iterdir()) == ["gpt2_tiny.ckpt", "gpt2_tiny.yaml"]
    monkeypatch.chdir(tmp_path)
    again = GPT2LMHeadModel.from_pretrained("gpt2_tiny")
    np.testing.assert_array_equal(again(hf_models.IDS).asnumpy(), model(hf_models.IDS).asnumpy())
    # The family's folder serves its sizes by their names only.
    assert AutoConfig.from_pretrained("gpt2_medium").num_layers == 24
    config = GPT2Config(**{**TINY, "checkpoint_name_or_path": "gpt2_tiny"})
    with pytest.raises(ValueError, match="not in the model"):
        GPT2LMHeadModel(config)(hf_models.IDS)


def test_a_name_under_the_home_folder(tmp_path, monkeypatch, folder):
    folder("llama")
    monkeypatch.setenv("MINDSPEED_MS_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    assert AutoConfig.from_pretrained("llama").vocab_size == 61


def test_nothing_is_downloaded_and_the_places_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"nothing found for 'gpt2'.*checkpoint_download/gpt2"):
        AutoModel.from_pretrained("gpt2")
    with pytest.raises(OSError, match=r"one of the sizes gpt2, .*gpt2_13b"):
        AutoConfig.from_pretrained("no_such_model")


def test_a_folder_of_another_kind(folder):
    with pytest.raises(ValueError, match="use LlamaConfig or AutoConfig"):
        GPT2LMHeadModel.from_pretrained(folder("llama"))


def test_half_a_download_is_an_error(folder):
    path = folder("llama")
    (path / "model.safetensors").unlink()
    with pytest.raises((OSError, ValueError), match="safetensors"):
        AutoModel.from_pretrained(path)
    assert AutoConfig.from_pretrained(path).hidden_size == 32


def test_types(folder):
    path = folder("llama")
    model = AutoModel.from_pretrained(path, dtype="bfloat16")
    assert {param.dtype for param in model.get_parameters()} == {ms.bfloat16}
    assert model(hf_models.IDS).dtype == ms.float32
    assert AutoModel.from_pretrained(path, torch_dtype="auto").dtype == ms.float32


# ---- configurations ----


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2_13b", 12_848_143_360),
        ("llama_7b", 6_738_415_616),
        ("llama3_8b", 8_030_261_248),
    ],
)
def test_sizes_are_counted_without_building(name, count):
    config = AutoConfig.from_pretrained(name)
    assert config.num_parameters() == count
    assert AutoModel.from_config(config).num_parameters() == count


def test_both_vocabularies_of_names():
    ours = GPT2Config(hidden_size=32, num_layers=3, num_heads=4, seq_length=64, expand_ratio=2)
    theirs = GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, n_inner=64)
    assert ours == theirs
    assert (theirs.hidden_size, theirs.num_attention_heads, theirs.seq_length) == (32, 4, 64)
    assert GPT2Config(embedding_size=32, num_heads=4).n_embd == 32
    assert LlamaConfig(batch_size=1).num_parameters() == 6_738_415_616


def test_layers_for_further_tokens_are_not_counted_as_transformers_does_not():
    config = AutoConfig.from_pretrained("deepseek_v3")
    assert config.num_parameters() == 671_026_404_352  # of its class in transformers 5.24
    assert gpt_spec(config.all_config().model_config).num_parameters == 682_636_472_320
    llama = LlamaConfig(hidden_size=512, num_layers=2, num_heads=8, n_kv_heads=2, theta=5e5)
    assert (llama.intermediate_size, llama.num_key_value_heads) == (1536, 2)
    assert llama.to_dict()["rope_theta"] == 5e5


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"hiden_size": 3}, TypeError, "did you mean 'hidden_size'"),
        ({"num_layers": "x"}, ValueError, "whole number"),
        ({"hidden_size": 30, "num_heads": 7}, ValueError, "must be a multiple"),
        ({"activation_function": "mish"}, ValueError, "gelu"),
    ],
)
def test_a_wrong_configuration(given, error, message):
    with pytest.raises(error, match=message):
        GPT2Config(**given)


def test_mindformers_yaml_is_a_configuration(request):
    tree = request.config.rootpath / "configs" / "gpt2" / "model_config"
    config = AutoConfig.from_pretrained(tree / "gpt2_13b.yaml")
    assert isinstance(config, GPT2Config)
    assert config.num_parameters() == 12_848_143_360
    assert config.generation["top_k"] == 5
    assert str(config.all_config().model_config.compute_dtype) == "float16"


def test_auto_classes_are_not_made():
    for cls in (AutoConfig, AutoModel, AutoModelForCausalLM):
        with pytest.raises(EnvironmentError, match="from_pretrained"):
            cls()


def test_a_family_without_a_class_gets_one():
    config = AutoConfig.for_model("qwen3", num_layers=1, hidden_size=32, num_heads=4, vocab_size=9)
    assert type(AutoModel.from_config(config)).__name__ == "Qwen3ForCausalLM"
    assert {"gpt2_13b", "llama_7b"} <= set(AutoModel.show_support_list())
    assert "llama_7b" not in GPT2LMHeadModel.show_support_list()


def test_a_model_no_family_holds_keeps_its_description(tmp_path):
    config = AutoConfig.for_model(
        "mindspeed_ms",
        vocab_size=61,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        seq_length=12,
        layernorm_zero_centered_gamma=True,
    )
    model = AutoModel.from_config(config)
    logits = model(hf_models.IDS).asnumpy()
    model.save_pretrained(tmp_path / "own", format="mindspeed_ms")
    again = AutoModel.from_pretrained(tmp_path / "own")
    np.testing.assert_array_equal(again(hf_models.IDS).asnumpy(), logits)
    with pytest.raises(ValueError, match="no family of Hugging Face models"):
        model.save_pretrained(tmp_path / "hub")


def test_names_of_the_root_are_lazy():
    script = (
        "import sys, mindspeed_ms\n"
        "mindspeed_ms.GPT2Config(num_layers=2).num_parameters()\n"
        "mindspeed_ms.AutoConfig.from_pretrained('gpt2_13b')\n"
        "assert 'mindspore' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert LlamaForCausalLM.Config is LlamaConfig
    assert mindspeed_ms.AutoModel is AutoModel
