# SPDX-License-Identifier: Apache-2.0
"""Adapters against what PEFT and torch compute: logits, losses of steps, and files."""

import json

import numpy as np
import pytest
from peft_cases import CASES, DATA, expected, logits_of, opened, sections
from safetensors.numpy import load_file

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core.peft.merge import adapted_layers, merge, unmerge
from mindspeed_ms.formats import own_format, peft
from mindspeed_ms.formats.huggingface import read_config
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.families.registry import family_of_type
from mindspeed_ms.planning.memory import stage_state
from mindspeed_ms.toolkit.models.auto import AutoModelForCausalLM
from mindspeed_ms.toolkit.peft import (
    LoraConfig,
    PeftModel,
    get_pet_model,
    merge_adapter,
    save_adapter,
    unmerge_adapter,
)
from mindspeed_ms.training.conversion import ConvertOptions, convert


@pytest.mark.parametrize("case", CASES)
def test_logits_and_losses_are_peft_s(case):
    losses = []
    with opened(case, losses=losses) as run:
        adapted = logits_of(run, case)
        run.train()
    assert np.abs(adapted - expected(case)["adapted"]).max() <= 2e-5
    assert np.abs(np.array(losses) - expected(case)["losses"]).max() <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_only_adapters_are_trained_as_many_as_peft_trains(case):
    spec = gpt_spec(assemble(sections(case)).model_config)
    assert spec.num_adapter_parameters == int(expected(case)["trained"])


@pytest.mark.parametrize("case", ["gpt2_c_attn", "llama_qv", "mixtral_experts"])
def test_fresh_adapters_leave_logits_as_they_were(case):
    found = sections(case)
    found["training_config"]["load_checkpoint"] = None
    with opened(case, found) as run:
        fresh = logits_of(run, case)
    base = sections(case)
    base["lora_config"] = {}
    base["training_config"]["load_checkpoint"] = str(DATA / case)
    with opened(case, base) as run:
        assert np.array_equal(fresh, logits_of(run, case))


@pytest.mark.parametrize("case", CASES)
def test_files_are_written_as_they_were_read(case, tmp_path):
    config = assemble(sections(case))
    spec = gpt_spec(config.model_config)
    family = family_of_type(read_config(DATA / case / "config.json")["model_type"])
    original = peft.read_options(DATA / case / "adapter")
    original |= {"a_later_option": {"kept": 1}, "layers_pattern": "layers"}
    peft.check_options(original, "these")
    catalog = peft.read_catalog(DATA / case / "adapter", spec, [family])
    arrays = peft.values(catalog)
    peft.write(tmp_path, arrays, spec, family, config.lora_config, original)
    written = json.loads((tmp_path / peft.CONFIG).read_text())
    assert written.keys() == original.keys()
    assert written["a_later_option"] == {"kept": 1}
    assert written["layers_pattern"] is None  # PEFT wants it with layers_to_transform alone
    theirs, ours = (load_file(one / peft.WEIGHTS) for one in (DATA / case / "adapter", tmp_path))
    assert theirs.keys() == ours.keys()  # so that PEFT finds every tensor
    assert all(np.array_equal(theirs[name], ours[name]) for name in theirs)
    again = assemble(sections(case) | {"lora_config": peft.section_of(written)})
    back = gpt_spec(again.model_config)
    read = peft.read_catalog(tmp_path, back, [family])
    assert back.by_name.keys() == spec.by_name.keys()
    values = peft.values(read)
    assert all(np.array_equal(values[name], array) for name, array in arrays.items())
    before, after = peft.AdapterDeltas(catalog, spec), peft.AdapterDeltas(read, back)
    for name, one in spec.by_name.items():
        assert (name in before) == (name in after)
        if name in before:
            weight = np.random.default_rng(0).normal(size=one.shape).astype(np.float32)
            assert np.allclose(before.merged(name, weight), after.merged(name, weight), atol=1e-6)


def test_gpt2_of_124_million_parameters_trains_what_peft_trains_in_little_memory():
    model = {
        "num_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "vocab_size": 50257,
        "seq_length": 1024,
        "position_embedding_type": "learned_absolute",
        "params_dtype": "float32",
    }
    lora = {"use_lora": True, "lora_rank": 8, "target_modules": ["c_attn"]}
    config = assemble({"model_config": model, "lora_config": lora})
    spec = gpt_spec(config.model_config)
    assert (spec.num_adapter_parameters, spec.num_parameters) == (294912, 124734720)
    state = stage_state(config, 1, 0)
    assert state.weights == 4 * 124734720
    assert (state.gradients, state.optimizer) == (4 * 294912, 8 * 294912)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"target_modules": ("q_porj",)}, "fits no linear layer of the model"),
        ({"target_modules": ("qkv_proj",), "rank_pattern": {"x": 0}}, "a number above 0"),
        ({"target_modules": "["}, "is no regular expression"),
        ({"target_modules": ("q_proj", "lm_head")}, "means lm_head too"),
        ({"target_modules": r".*(q_proj|embed_tokens)"}, "means model.embed_tokens too"),
        ({"target_modules": ("wte",)}, "means transformer.wte too"),
        ({"target_modules": ("v_proj", "router")}, "means decoder.layers.0.mlp.router too"),
        ({"target_cells": ({"target_cells": [".*"]},)}, "means lm_head too"),
        ({"layers_to_transform": (7,)}, "names layer 7; the model has 2"),
        ({"target_modules": ("wq",), "exclude_layers": ("wq",)}, "no layer with an adapter"),
    ],
)
def test_wrong_targets_are_named(lora, words):
    with pytest.raises(ValueError, match="lora_config|target_modules|layers_to") as found:
        gpt_spec(assemble(sections("llama_qv", **lora)).model_config)
    assert words in str(found.value)


@pytest.mark.parametrize("targets", [("wq", "wv"), ".*wq|.*wv", ("q_proj", "v_proj")])
def test_names_of_other_projects_mean_the_same_layers(targets):
    named = gpt_spec(assemble(sections("llama_qv", target_modules=targets)).model_config)
    assert named == gpt_spec(assemble(sections("llama_qv")).model_config)


@pytest.mark.parametrize("targets", ["all-linear", ("all-linear",), None])
def test_every_linear_layer_is_meant_by_one_word_alone_or_in_a_list(targets):
    """A flag of several words cannot say it otherwise."""
    spec = gpt_spec(assemble(sections("qwen2_dora", target_modules=targets)).model_config)
    assert spec.num_adapter_parameters == int(expected("qwen2_dora")["trained"])


@pytest.mark.parametrize(
    ("option", "value"),
    [("bias", "all"), ("init_lora_weights", "pissa"), ("modules_to_save", ["lm_head"])],
)
def test_options_of_peft_that_are_not_done_are_refused_by_name(option, value, tmp_path):
    options = peft.read_options(DATA / "llama_qv" / "adapter") | {option: value}
    (tmp_path / peft.CONFIG).write_text(json.dumps(options))
    with pytest.raises(ValueError, match=option):
        peft.read_options(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_compute_the_same_and_unmerging_restores_their_bits(case):
    with opened(case) as run:
        module = run.model[0].module
        adapted = logits_of(run, case)
        before = [memory.as_numpy(weight).copy() for weight, _ in adapted_layers(module)]
        merge(module)
        merged = logits_of(run, case)
        assert not all(
            np.array_equal(memory.as_numpy(weight), bits)
            for (weight, _), bits in zip(adapted_layers(module), before, strict=True)
        )
        unmerge(module)
        for (weight, _), bits in zip(adapted_layers(module), before, strict=True):
            assert np.array_equal(memory.as_numpy(weight), bits)
        assert np.array_equal(logits_of(run, case), adapted)
    assert np.abs(merged - expected(case)["adapted"]).max() <= 2e-5


@pytest.mark.parametrize("case", ["gpt2_c_attn", "qwen2_dora", "mixtral_experts"])
def test_a_run_goes_on_bit_for_bit_from_a_checkpoint_of_adapters(case, tmp_path):
    whole, losses = [], []
    with opened(case, losses=whole) as run:
        run.train()
    found = sections(case, lora_dropout=0.0)
    found["training_config"] |= {
        "save_checkpoints": True,
        "save_interval": 2,
        "resume_training": True,
        "output_dir": str(tmp_path),
    }
    with opened(case, found, losses) as run:
        run.train(2)
    names = own_format.read_catalog(tmp_path / "iter_0000002").tensors
    assert all(".adapters." in name for name in names) and len(names) % 3 == 0
    found["training_config"]["load_checkpoint"] = str(tmp_path)
    found["lora_config"]["base_model_name_or_path"] = None  # the checkpoint knows it
    with opened(case, found, losses) as run:
        run.train()
    assert losses == whole


def test_a_base_that_is_not_there_is_named(tmp_path):
    found = sections("llama_qv", base_model_name_or_path=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="base_model_name_or_path is .*nowhere"):
        opened("llama_qv", found)


def test_adapters_alone_are_no_model():
    found = sections("llama_qv")
    found["lora_config"] = {}
    with pytest.raises(ValueError, match="holds adapters alone; load them with use_lora"):
        opened("llama_qv", found)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_with_adapters_merged_in_computes_the_same(case, tmp_path):
    options = ConvertOptions(to="huggingface", base=DATA / case, make_vocab_size_divisible_by=1)
    convert(DATA / case / "adapter", tmp_path / "merged", options)
    found = sections(case)
    found["lora_config"] = {}
    found["training_config"] |= {"load_checkpoint": str(tmp_path / "merged")}
    with opened(case, found) as run:
        merged = logits_of(run, case)
    assert np.abs(merged - expected(case)["adapted"]).max() <= 2e-5


@pytest.mark.parametrize("case", ["gpt2_c_attn", "llama_patterns", "qwen2_dora"])
def test_adapters_of_a_run_are_written_in_peft_s_files(case, tmp_path):
    found = sections(case)
    found["training_config"] |= {"save_checkpoints": True, "output_dir": str(tmp_path / "run")}
    with opened(case, found) as run:
        run.train()
        trained = logits_of(run, case)
    convert(tmp_path / "run", tmp_path / "adapter", ConvertOptions(to="peft"))
    found = sections(case)
    found["training_config"]["load_checkpoint"] = str(tmp_path / "adapter")
    section = peft.section_of(peft.read_options(tmp_path / "adapter"))
    assert section["base_model_name_or_path"] == str(DATA / case)
    found["lora_config"] = section
    with opened(case, found) as run:
        assert np.abs(logits_of(run, case) - trained).max() <= 1e-6


def test_a_whole_model_is_not_written_as_adapters(tmp_path):
    with pytest.raises(ValueError, match="holds no adapters"):
        convert(DATA / "llama_qv", tmp_path / "x", ConvertOptions(to="peft"))


def test_noise_on_embeddings_is_as_large_as_asked_and_only_in_training():
    found = sections("llama_qv", neftune_noise_alpha=5.0)
    with opened("llama_qv", found) as run, run.active(), autograd.no_grad():
        table = run.model[0].module.language_model.embedding
        ids = memory.from_numpy(np.arange(24, dtype=np.int32).reshape(2, 12))
        table.set_train(False)
        plain = memory.as_numpy(table(ids, None)).copy()
        table.set_train(True)
        noise = memory.as_numpy(table(ids, None)) - plain
    most = 5.0 / np.sqrt(12 * 16)
    assert 0.9 * most < np.abs(noise).max() <= most * 1.001
    assert abs(noise.mean()) < 0.1 * most and abs(noise.std() - most / np.sqrt(3)) < 0.1 * most


def test_dropout_sees_the_noise_of_embeddings():
    """As in ``transformers``, where the lookup itself has it: what is dropped is zero."""
    found = sections("gpt2_c_attn", neftune_noise_alpha=5.0)
    found["model_config"]["hidden_dropout_rate"] = 0.5
    with opened("gpt2_c_attn", found) as run, run.active(), autograd.no_grad():
        table = run.model[0].module.language_model.embedding
        table.set_train(True)
        ids = memory.from_numpy(np.arange(24, dtype=np.int32).reshape(2, 12))
        drawn = memory.as_numpy(table(ids, None))
    assert 0.4 < np.mean(drawn == 0.0) < 0.6


def test_a_configuration_by_the_words_of_peft_and_mindformers():
    config = LoraConfig(lora_rank=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    same = LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj", "q_proj"])
    assert config.section() == same.section()
    section = LoraConfig.from_pretrained(DATA / "llama_qv" / "adapter").section()
    assert section == config.section()
    with pytest.raises(ValueError, match="LoraConfig: bias is 'all'"):
        LoraConfig(bias="all")
    for drawn in ("gaussian", False):
        with pytest.raises(ValueError, match="init_lora_weights is .*; fresh adapters begin with"):
            LoraConfig(init_lora_weights=drawn)
    with pytest.raises(TypeError, match="lora_ranks"):
        LoraConfig(lora_ranks=4)
    with pytest.raises(ValueError, match="pet_type is 'prefix'"):
        LoraConfig(pet_type="prefix")


def forwarded(model, case):
    model.set_train(False)
    with model.active(), autograd.no_grad():
        result = model(memory.from_numpy(expected(case)["tokens"].astype(np.int32)))
    logits = result[0] if isinstance(result, tuple) else result
    return memory.as_numpy(memory.contiguous(logits)).copy()


@pytest.mark.parametrize("case", CASES)
def test_models_by_name_take_peft_s_adapters_merge_and_write_them(case, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(DATA / case)
    model = PeftModel.from_pretrained(base, DATA / case / "adapter")
    assert np.abs(forwarded(base, case) - expected(case)["base"]).max() <= 2e-5
    adapted = forwarded(model, case)
    assert np.abs(adapted - expected(case)["adapted"]).max() <= 2e-5
    for form in ("huggingface", "mindspore", "megatron", "mindspeed_ms"):
        with pytest.raises(ValueError, match="beside them; put them in with merge_adapter"):
            model.save_pretrained(tmp_path / "merged", format=form)
    assert not (tmp_path / "merged").exists()
    merge_adapter(model)
    assert np.abs(forwarded(model, case) - expected(case)["adapted"]).max() <= 2e-5
    for form in ("huggingface", "mindspeed_ms"):
        model.save_pretrained(tmp_path / form, format=form)
    unmerge_adapter(model)
    assert np.array_equal(forwarded(model, case), adapted)
    for form in ("huggingface", "mindspeed_ms"):
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / form)
        assert np.abs(forwarded(merged, case) - adapted).max() <= 2e-5
    save_adapter(model, tmp_path / "adapter")
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert np.abs(forwarded(again, case) - adapted).max() <= 2e-6
    fresh = get_pet_model(base, LoraConfig(r=2))
    assert np.array_equal(forwarded(fresh, case), forwarded(base, case))


def test_experts_may_be_named_one_by_one():
    """All of a layer together, or none: they share one description."""

    def names(*targets):
        found = sections("mixtral_experts", target_modules=targets)
        return {name for name in gpt_spec(assemble(found).model_config).by_name if "lora" in name}

    one_by_one = names("q_proj", *(f"experts.{number}.w1" for number in range(4)))
    assert one_by_one == names("q_proj", "w1") and one_by_one
    with pytest.raises(ValueError, match="but not 1 other experts of its layer"):
        names(*(f"experts.{number}.w1" for number in range(3)))
