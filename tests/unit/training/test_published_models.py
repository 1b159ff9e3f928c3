# SPDX-License-Identifier: Apache-2.0
"""Launch scripts of MindSpeed-LLM and ModelLink plan, and their own words mean what they say."""

import math

import pytest
from flag_words import config_of
from launch_corpus import PUBLISHED, SCRIPTS, expanded

from mindspeed_ms.models.identity import identity
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.dry_run import resolve
from mindspeed_ms.training.from_args import no_effect_report


def command(end, *more):
    """Arguments of the script whose name ends like this."""
    (words,) = [text.split() for name, text in PUBLISHED.items() if name.endswith(end)]
    return parse_args([*words, "--dry-run", *more])


def model(end):
    return resolve(command(end)).config.model_config


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("more", [[], ["--scale-down", "--world-size", "8"]])
def test_a_script_plans(name, more):
    args = command(name.rpartition("/")[2], *more)
    assert resolve(args).config.model_config.num_layers == args.num_layers
    assert args.refusals == []


def test_a_script_of_instruction_data_reads_it():
    config = resolve(command("tune_deepseek2_lite_16b_full_ptd")).config
    assert config.dataset_config.is_instruction_dataset
    assert config.dataset_config.prompt_type == "deepseek2-lite"
    assert config.parallel_config.variable_seq_lengths


@pytest.mark.parametrize("stage", ["dpo", "prm", "ray_ppo"])
def test_other_stages_are_refused(stage):
    args = parse_args(["--stage", stage, "--dry-run"])
    assert "use --stage sft with --is-instruction-dataset" in args.refusals[0]


def test_gemma_scales_its_embedding_and_looks_back_in_every_other_layer():
    config = model("pretrain_gemma2_9b_ptd")
    assert config.embedding_multiplier == pytest.approx(math.sqrt(3584))
    assert (config.hidden_act, config.gated_linear_unit) == ("fast_gelu", True)
    assert config.layer_window(0) == (4095, 0)  # 4096 tokens, its own included
    assert [config.has_window(layer) for layer in range(4)] == [True, False, True, False]


def test_minicpm_scales_embedding_layers_and_logits():
    config = model("pretrain_minicpm_8x2b")
    assert config.embedding_multiplier == 12
    assert config.residual_multiplier == pytest.approx(1.4 / math.sqrt(40))
    assert config.logits_scaling == 2304 / 256


def test_bloom_normalizes_its_embedding():
    config = model("pretrain_bloom_ptd_7B")
    assert config.embed_layernorm and config.position_embedding_type == "alibi"


def test_glm_turns_pairs_of_half_a_head():
    config = model("pretrain_chatglm3_6B_32K")
    assert (config.rotary_percent, config.rotary_interleaved) == (0.5, True)


def test_minus_one_puts_experts_into_every_layer():
    config = resolve(command("pretrain_gpt4_moe_drop")).config
    assert all(config.moe_config.moe_layers(10))


def test_a_limited_router_has_a_group_for_each_expert_parallel_rank():
    config = resolve(command("pretrain_deepseek2_60b_128k_A3_ptd")).config
    moe = config.moe_config
    assert (moe.moe_router_num_groups, moe.moe_router_group_topk) == (16, 3)


def test_specifications_whose_layers_the_flags_describe_pass_with_a_line():
    args = command("pretrain_qwen3_8b_4K_ptd_fsdp2_A3")
    resolve(args)
    assert "--spec has no effect: its value asks for what happens anyway" in no_effect_report(args)


VIRTUAL = "--num-virtual-stages-per-pipeline-rank"


@pytest.mark.parametrize("ranks", [1, 2])
def test_virtual_stages_shrink_under_every_name_of_their_flag(ranks):
    names = [name for name, words in SCRIPTS.items() if VIRTUAL in words]
    assert len(names) > 4
    for name in names:
        words = [*expanded(SCRIPTS[name]), "--scale-down", "--world-size", str(ranks)]
        parallel = resolve(parse_args([*words, "--dry-run"])).config.parallel_config
        stages = parallel.pipeline_model_parallel_size
        assert (parallel.virtual_pipeline_model_parallel_size is not None) == (stages > 1), name


def test_the_last_norm_can_be_left_out():
    assert config_of("--no-post-layer-norm").model_config.use_final_norm is False
    assert config_of("--use-deter-comp").parallel_config.deterministic_mode


@pytest.mark.parametrize(
    "words",
    [
        "--use-lora --lora-register-forward-hook word_embeddings --lora-ckpt-filter "
        "--load-checkpoint-loosely",
        "--shared-expert-gate-output-dimension 1 --input-jitter --mla-fa-divide-qk",
    ],
)
def test_what_fine_tuning_scripts_say_beside_passes(words):
    before = [word for word in words.split() if word == "--use-lora"]
    assert identity(config_of(*words.split())) == identity(config_of(*before))
