# SPDX-License-Identifier: Apache-2.0
"""Every family: its keys and its tensors go there and back, and nothing is left over."""

import json
from pathlib import Path

import numpy as np
import pytest
from family_document import families_document

from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.families.registry import BY_MODEL_TYPE, FAMILIES, family_of, family_of_type

PRESETS = [(family, name) for family in FAMILIES for name in family.presets]
IDS = [name for _, name in PRESETS]


def test_the_document_is_current():
    path = Path(__file__).parents[3] / "docs" / "families.md"
    assert path.read_text(encoding="utf-8") == families_document(), (
        "run python tools/families_document.py"
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_found_by_its_model_type(family):
    assert BY_MODEL_TYPE[family.model_type] is family
    assert family.presets, "sizes to build it in"


@pytest.mark.parametrize(("family", "name"), PRESETS, ids=IDS)
def test_a_preset_is_held_by_its_family(family, name):
    theirs = family.presets[name]
    config = family.config(theirs)
    assert family.misfits(config) == []
    assert family.unknown_keys(theirs) == []
    written = family.config_json(config, theirs["vocab_size"])
    known = {key: written.get(key) for key in theirs if key in written}
    assert known == {key: theirs[key] for key in known}
    assert json.loads(json.dumps(written)) == written


@pytest.mark.parametrize(
    ("model_type", "name", "number"),
    [
        ("qwen3_moe", "qwen3_30b_a3b", 30_532_122_624),
        ("gemma2", "gemma2_2b", 2_614_341_888),
        ("gemma3_text", "gemma3_1b", 999_885_952),
        ("phi3", "phi3_mini", 3_821_079_552),
        ("gpt_neox", "pythia_70m", 70_426_624),
        ("olmo2", "olmo2_1b", 1_484_916_736),
        ("olmoe", "olmoe_1b_7b", 6_919_161_856),
        ("deepseek_v2", "deepseek_v2_lite", 15_706_484_224),
        ("gpt_oss", "gpt_oss_20b", 20_914_757_184),
        ("seed_oss", "seed_oss_36b", 36_151_104_512),
        ("smollm3", "smollm3_3b", 3_075_098_624),
        ("starcoder2", "starcoder2_3b", 3_030_371_328),
        ("exaone4", "exaone4_32b", 32_003_216_384),
        ("ministral", "ministral_8b", 8_019_808_256),
        ("ernie4_5", "ernie4.5_0.3b", 360_748_032),
        ("nemotron", "minitron_4b", 4_190_509_056),
        ("stablelm", "stablelm2_1.6b", 1_644_515_328),
        ("falcon", "falcon_40b", 41_303_293_952),
        ("bloom", "bloom_560m", 559_214_592),
        ("cohere2", "command_r7b", 8_028_033_024),
        ("phi", "phi2", 2_779_683_840),
        ("opt", "opt_1.3b", 1_315_758_080),
        ("mpt", "mpt_7b", 6_649_286_656),
        ("olmo", "olmo_7b", 6_888_095_744),
        ("internlm2", "internlm2_7b", 7_737_708_544),
        ("qwen3_next", "qwen3_next_80b_a3b", 79_674_391_296),
        ("minimax_m2", "minimax_m2", 228_689_748_992),
        ("exaone_moe", "k_exaone_236b_a23b", 236_571_150_336),
        ("solar_open", "solar_open_100b", 102_651_793_408),
        ("gptj", "gptj_6b", 6_050_882_784),
        ("codegen", "codegen_350m", 356_712_448),
        ("gpt_neo", "gpt_neo_1.3b", 1_315_575_808),
        ("gpt_bigcode", "starcoder_15b", 15_517_456_384),
        ("persimmon", "persimmon_8b", 9_397_175_296),
        ("internlm3", "internlm3_8b", 8_804_241_408),
        ("hyperclovax", "hyperclovax_seed_think_14b", 14_748_112_896),
    ],
)
def test_sizes_have_the_published_number_of_parameters(model_type, name, number):
    family = BY_MODEL_TYPE[model_type]
    assert gpt_spec(family.config(family.presets[name]).model_config).num_parameters == number


REFUSED = {
    "hidden_act": ("llama", {"hidden_act": "relu6"}),
    "partial_rotary_factor": ("llama", {"partial_rotary_factor": 0.5}),
    "stretches rotations": ("llama", {"rope_scaling": {"rope_type": "other", "factor": 2.0}}),
    "some_entry is not known": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "some_entry": 1}},
    ),
    "use_bidirectional_attention": ("gemma2", {"use_bidirectional_attention": True}),
    "swiglu_alpha": ("gpt_oss", {"swiglu_alpha": 0}),
    "layer_types": ("gpt_oss", {"layer_types": ["chunked_attention"] * 24}),
    "topk_method": ("deepseek_v2", {"topk_method": "noaux_tc"}),
    "scoring_func": ("deepseek_v3", {"scoring_func": "softmax"}),
    "truncate False for rotations of a kind of layers": (
        "olmo3",
        {
            "rope_theta": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "yarn", "factor": 2.0, "truncate": False},
                "sliding_attention": {},
            },
            "rope_scaling": None,
        },
    ),
    "num_key_value_heads": ("deepseek_v3", {"num_key_value_heads": 4}),
}


@pytest.mark.parametrize(("message", "case"), REFUSED.items(), ids=REFUSED)
def test_a_key_that_cannot_be_held_is_named(message, case):
    model_type, change = case
    family = BY_MODEL_TYPE[model_type]
    theirs = next(iter(family.presets.values()))
    with pytest.raises(ValueError, match=message):
        family.config({**theirs, **change})


UNHELD = {
    "num_ln_in_parallel_attn 2 and parallel_attn": (
        "falcon",
        {"new_decoder_architecture": False, "num_ln_in_parallel_attn": 2},
    ),
    "alibi True with 71 heads, whose slopes": ("falcon", {"alibi": True}),
    "no_rope_layers of 1 entries for 36": ("smollm3", {"no_rope_layers": [1]}),
    "layer_types of 2 entries for 36": ("smollm3", {"layer_types": ["full_attention"] * 2}),
    "among its layer_types, but no sliding": (
        "smollm3",
        {"layer_types": ["sliding_attention"] * 36},
    ),
    "'LLLG' without layer_types": (
        "exaone4",
        {"layer_types": None, "sliding_window": 8, "sliding_window_pattern": "LLLG"},
    ),
    "must be a whole number of at least 0, or a text": ("exaone4", {"sliding_window_pattern": "x"}),
    "must be a list of 0 and 1": ("smollm3", {"no_rope_layers": [2]}),
    "indexer_types .* in even steps": (
        "glm_moe_dsa",
        {"num_hidden_layers": 4, "indexer_types": ["full", "shared", "full", "full"]},
    ),
    "rotary_dim 512 for heads of 256 channels": ("gptj", {"rotary_dim": 512}),
    "n_head 6; .* 4 equal parts": ("codegen", {"n_head": 6}),
    "with a number of repetitions each, for 12 layers": (
        "gpt_neo",
        {"attention_types": [[["global"], 2]]},
    ),
    "qkv_bias True and bias False": ("internlm3", {"qkv_bias": True}),
    "layer_types .*'other'.* for each of the 48 layers": (
        "qwen3_next",
        {"layer_types": ["linear_attention", "other"] * 24},
    ),
    "use_bias True; only False": ("ernie4_5_moe", {"use_bias": True}),
}


@pytest.mark.parametrize(("message", "case"), UNHELD.items(), ids=UNHELD)
def test_what_newer_families_cannot_hold_is_named(message, case):
    test_a_key_that_cannot_be_held_is_named(message, case)


def test_experts_in_every_second_layer_go_back():
    family = BY_MODEL_TYPE["ernie4_5_moe"]
    steps = {"moe_layer_interval": 2, "moe_layer_start_index": 3, "moe_layer_end_index": 9}
    config = family.config({**family.presets["ernie4.5_21b_a3b"], **steps})
    assert config.moe_config.moe_layer_freq[:12] == (0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0)
    assert family.misfits(config) == []
    assert steps.items() <= family.config_json(config, 32).items()


def test_an_unknown_type_of_model_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"'smolm3'; .*smollm3, .*did you mean 'smollm3'\?"):
        family_of_type("smolm3")


def test_norms_of_narrow_vectors_keep_their_epsilon_whatever_the_others_have():
    family = BY_MODEL_TYPE["deepseek_v3"]
    theirs = next(iter(family.presets.values()))
    model = family.config({**theirs, "rms_norm_eps": 1e-5}).model_config
    assert (model.norm_epsilon, model.mla_config.norm_epsilon) == (1e-5, 1e-6)


@pytest.mark.parametrize(("family", "name"), PRESETS, ids=IDS)
def test_tensors_cover_every_parameter_once(family, name):
    theirs = dict(family.presets[name])
    layers = next(
        key for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if key in theirs
    )
    theirs[layers] = 2
    theirs |= {key: value[:2] for key, value in theirs.items() if isinstance(value, list)}
    if "attention_types" in theirs:
        theirs["attention_types"] = [[theirs["attention_types"][0][0], 1]]
    spec = gpt_spec(family.config(theirs).model_config)
    covered = {parameter.name: 0 for parameter in spec.parameters()}
    seen = set()
    for place in family.places(spec):
        assert (place.theirs, place.part) not in seen, "a tensor is named twice"
        seen.add((place.theirs, place.part))
        if place.is_copy:
            continue
        covered[place.name] += int(np.prod(place.shape))
        bounds = [high for _, high in place.region.bounds]
        assert all(
            high <= size for high, size in zip(bounds, spec.by_name[place.name].shape, strict=True)
        )
    assert covered == {parameter.name: parameter.size for parameter in spec.parameters()}


def test_the_nearest_family_is_named_with_what_it_cannot_hold():
    config = family_of_llama(model={"layernorm_zero_centered_gamma": True})
    with pytest.raises(ValueError, match=r"llama, the nearest, .*layernorm_zero_centered_gamma"):
        family_of(config)


def family_of_llama(model):
    from mindspeed_ms.config.build import assemble

    sections = BY_MODEL_TYPE["llama"].sections(BY_MODEL_TYPE["llama"].presets["llama2_7b"])
    sections["model_config"] |= model
    return assemble(sections)


OPTIONS = {
    "qk_layernorm": {"qk_layernorm": True},
    "sandwich norms": {"use_sandwich_norm": True},
    "interpolated positions": {"rotary_seq_len_interpolation_factor": 2.0},
    "part of the channels rotated": {"rotary_percent": 0.5},
    "residual after norm": {"apply_residual_connection_post_norm": True},
    "squared relu": {
        "hidden_act": "squared_relu",
        "gated_linear_unit": False,
        "ffn_hidden_size": 64,
    },
    "gates of gelu": {"hidden_act": "gelu"},
    "limited gates": {"activation_func_clamp_value": 7.0},
    "values with an offset": {"glu_linear_offset": 1.0},
    "scaled embedding": {"embedding_multiplier": 2.0},
    "scaled blocks": {"residual_multiplier": 0.5},
    "scaled logits": {"logits_scaling": 2.0},
    "capped logits": {"final_logit_softcapping": 30.0},
    "blocks side by side": {"use_parallel_residual": True},
    "norms behind the blocks": {"use_pre_norm": False, "use_sandwich_norm": True},
    "norms of all heads": {"qk_layernorm": True, "qk_layernorm_full": True},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "no final norm": {"use_final_norm": False},
    "layer norm": {"normalization": "LayerNorm"},
    "further tokens": {"mtp_num_layers": 1},
    "biases of the output": {"out_proj_has_bias": True},
    "neighbours rotated": {"rotary_interleaved": True},
}


@pytest.mark.parametrize("change", OPTIONS.values(), ids=OPTIONS)
def test_an_option_is_held_at_its_value_or_refused(change):
    config = family_of_llama(model=change)
    try:
        family = family_of(config)
    except ValueError as error:
        assert "convert to another format" in str(error)
        return
    back = family.config(family.config_json(config, 32000))
    for name, value in change.items():
        held = getattr(back.model_config, name)
        if isinstance(value, dict):
            held = {key: getattr(held, key) for key in value}
        assert held == value


TINY = {
    "vocab_size": 32,
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("model_type", "keys", "windows"),
    [
        ("mistral", {"sliding_window": 8}, [7] * 4),
        ("mistral", {}, [4095] * 4),
        ("mistral", {"sliding_window": None}, [None] * 4),
        ("mixtral", {"sliding_window": 8}, [7] * 4),
        ("mixtral", {}, [None] * 4),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, [None] * 4),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
            [None, None, 7, 7],
        ),
        ("qwen2", {"sliding_window": 8, "max_window_layers": 0}, [None] * 4),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 0}, [4095] * 4),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": [SLIDING, FULL, FULL, SLIDING],
            },
            [7, None, None, 7],
        ),
    ],
)
def test_windows_of_layers_go_there_and_back(model_type, keys, windows):
    family = BY_MODEL_TYPE[model_type]
    config = family.config({**TINY, **keys})
    found = [config.model_config.attention_window(layer) for layer in range(4)]
    assert [left for left, _ in found] == windows
    assert family.misfits(config) == []
    written = family.config_json(config, 32)
    if any(windows):
        assert written["sliding_window"] == keys.get("sliding_window", 4096)
        assert {SLIDING, FULL} >= set(written.get("layer_types", ()))


@pytest.mark.parametrize(
    "change",
    [
        {"window_size": (5, 0)},
        {"fa_config": {"pre_tokens": 5}},
        {"fa_config": {"next_tokens": 2, "sparse_mode": 4}},
        {"softmax_type": "off-by-one"},
        {"attn_logit_softcapping": 3.0},
        {"query_pre_attn_scalar": 100},
        {"no_rope_freq": 2},
        {"window_size": (5, 0), "rotary_base_local": 10.0},
    ],
)
def test_what_llama_does_not_do_to_scores_is_refused(change):
    config = family_of_llama(model=change)
    assert BY_MODEL_TYPE["llama"].misfits(config)


@pytest.mark.parametrize(
    "change",
    [
        {"query_pre_attn_scalar": 128},
        {"softmax_scale": 128**-0.5},
        {"window_size": (-1, 0)},
        {"window_size": (5, 0), "window_attn_skip_freq": 1},
        {"fa_config": {"sparse_mode": 4}},
        {"softmax_compute_dtype": "bfloat16", "attention_softmax_in_fp32": False},
    ],
)
def test_spellings_of_plain_attention_are_held_by_llama(change):
    assert BY_MODEL_TYPE["llama"].misfits(family_of_llama(model=change)) == []
