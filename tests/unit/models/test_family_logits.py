# SPDX-License-Identifier: Apache-2.0
"""A folder of every family computes what it computes in ``transformers``, and comes out again."""

import json
from pathlib import Path

import family_cases
import family_runs
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindspeed_ms import AutoModelForCausalLM
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.models.families.registry import FAMILIES, family_of_type
from mindspeed_ms.training.checkpoint_config import spec_of
from mindspeed_ms.training.conversion import ConvertOptions, convert

pytestmark = pytest.mark.usefixtures("single_rank")


NOT_IN_TRANSFORMERS = {"gpt_pangu"}


def test_every_family_has_a_case():
    recorded = {family_cases.recorded(case)["config"]["model_type"] for case in family_cases.CASES}
    assert recorded == {family.model_type for family in FAMILIES} - NOT_IN_TRANSFORMERS


@pytest.mark.parametrize("case", [*family_cases.CASES, *family_cases.UNUSUAL])
def test_logits_and_tokens_are_those_of_transformers(case, tmp_path):
    told = family_cases.write_folder(case, tmp_path / "theirs")
    found, tokens = family_runs.forward_worker(
        tmp_path / "theirs", {}, told["prompt"], len(told["greedy"])
    )
    expected = np.array(told["logits"])
    assert np.abs(found - expected).max() <= family_cases.BOUND
    assert np.abs(expected).max() > 0.5, "logits that tell something"
    assert tokens == told["greedy"]


@pytest.mark.parametrize("case", [*family_cases.CASES, *family_cases.UNUSUAL])
def test_tensors_and_keys_come_back(case, tmp_path):
    told = family_cases.write_folder(case, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", ConvertOptions(to="mindspeed_ms"))
    options = ConvertOptions(to="huggingface", model_type=told["config"]["model_type"])
    for source, name in (("theirs", "again"), ("ours", "back")):
        convert(tmp_path / source, tmp_path / name, options)
        tensors = load_file(tmp_path / name / "model.safetensors")
        before = load_file(tmp_path / "theirs" / "model.safetensors")
        assert tensors.keys() == before.keys()
        for key, array in before.items():
            assert np.array_equal(array.view(np.uint32), tensors[key].view(np.uint32)), key
    written = json.loads(Path(tmp_path / "again" / "config.json").read_text())
    kept = {key: written.get(key) for key in told["config"]}
    assert kept == told["config"]


def test_what_does_not_belong_to_a_pythia_is_left_and_a_copied_head_told(tmp_path):
    told = family_cases.write_folder("gpt_neox", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        place = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{place}.bias"] = np.tril(np.ones((1, 1, 8, 8), bool))
        tensors[f"{place}.masked_bias"] = np.array(-1e9, np.float32)
        tensors[f"{place}.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found, _ = family_runs.forward_worker(tmp_path, {}, told["prompt"], 0)
    assert np.abs(found - np.array(told["logits"])).max() <= family_cases.BOUND
    tied = {**told["config"], "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(tied))
    catalog = open_checkpoint(find_checkpoint(tmp_path), spec_of)
    assert any("embed_out.weight not read, config.json ties" in note for note in catalog.notes)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "softcapping 5.0; only None is supported"),
        ("llama", {"hidden_act": "relu2"}, "'relu2'; silu, swish, gelu, .*, relu are supp"),
        ("gpt2", {"add_cross_attention": True}, "cross_attention True; only False is supported"),
        ("olmoe", {"clip_qkv": 0}, "clip_qkv 0, but it must be a finite number above 0"),
        ("olmoe", {"num_experts": 1}, "num_experts 1; a router here chooses among 2 experts"),
        ("deepseek_v32", {"layer_types": ["full_attention"] * 2}, "only indexed_attention is supp"),
        ("deepseek_v32", {"mlp_layer_types": ["dense", "other"]}, "dense or sparse for each of"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "for layers of two kinds; give one block for full_attention",
        ),
        (
            "gemma3_text",
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "models of this type name the kind by rope_type",
        ),
        (
            "olmo3",
            {"rope_parameters": None, "rope_theta": 10000.0},
            "rope_theta 10000.0, by which layers with a window rotate in some versions",
        ),
        ("opt", {"do_layer_norm_before": False}, "norm_before False; only True is supported"),
        ("mpt", {"attn_config": {"qk_ln": True}}, "attn_config.qk_ln True; only False is suppor"),
        ("opt", {"word_embed_proj_dim": 16}, "dim 16 and hidden_size 32; only equal ones"),
        ("phi", {"tie_word_embeddings": True}, "head_has_bias and a head that is the table"),
        ("deepseek_v2", {"mlp_bias": True}, "mlp_bias True; only False is supported"),
    ],
)
def test_what_cannot_be_held_is_refused_by_its_name(case, changes, message):
    config = {**family_cases.recorded(case)["config"], **changes}
    with pytest.raises(ValueError, match=message):
        family_of_type(config["model_type"]).config(config)


@pytest.mark.parametrize(
    "case",
    [
        "phi",
        "opt",
        "internlm2",
        "stablelm_norms",
        "cohere_norms",
        "olmoe_clipped",
        "falcon_alibi",
        "gpt_oss_steep",
        "olmo",
        "mpt",
    ],
)
def test_tokens_with_a_cache_are_those_of_transformers(case, tmp_path):
    told = family_cases.write_folder(case, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path))
    options = {"max_new_tokens": len(told["greedy"]), "do_sample": False, "eos_token_id": []}
    tokens = np.array(model.generate([told["prompt"]], **options))[0]
    assert tokens[len(told["prompt"]) :].tolist() == told["greedy"]


def test_a_first_gemma_says_gelu_and_means_the_tanh_form():
    config = family_cases.recorded("gemma")["config"]
    family = family_of_type("gemma")
    old = {**config, "hidden_act": "gelu", "hidden_activation": None}
    assert family.config(old) == family.config(config)
    assert family.config(old).model_config.hidden_act == "fast_gelu"
