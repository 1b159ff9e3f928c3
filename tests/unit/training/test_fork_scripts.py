# SPDX-License-Identifier: Apache-2.0
"""Launch scripts of forks of Megatron, and MindSpeed's own tests, plan as they are written."""

import pytest
from launch_corpus import FORKS

from mindspeed_ms.config import unsupported_reason
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.dry_run import dry_run, resolve
from mindspeed_ms.training.from_args import no_effect_report

SPECS = "mindspeed_llm.tasks.models.spec."
SMALL = (
    *("--num-layers", "4", "--hidden-size", "64", "--num-attention-heads", "4"),
    *("--seq-length", "32", "--max-position-embeddings", "32", "--micro-batch-size", "1"),
    *("--vocab-size", "100", "--lr", "1e-3", "--train-iters", "2", "--dry-run"),
)


def config(*words, small=SMALL):
    args = parse_args([*small, *words])
    assert args.refusals == []
    return resolve(args).config


@pytest.mark.parametrize("more", [[], ["--scale-down", "--world-size", "8"]])
def test_scripts_plan_as_they_are_and_small(more):
    for name, words in FORKS.items():
        args = parse_args([*words.split(), "--dry-run", *more])
        assert args.refusals == [], name
        assert not unsupported_reason(resolve(args).config), name


@pytest.mark.parametrize(
    ("words", "section", "field", "value"),
    [
        ("--zero-stage 0 --deepspeed", "parallel_config", "zero_level", None),
        ("--zero-stage=2 --deepspeed", "parallel_config", "zero_level", "z2"),
        ("--zero-stage 3", "training_config", "wrap_with_ddp", True),
        ("--num-key-value-heads 2", "model_config", "num_query_groups", 2),
        ("--num-key-value-heads 2", "model_config", "group_query_attention", True),
        ("--normalization rmsnorm", "model_config", "normalization", "RMSNorm"),
        ("--use_rms_norm", "model_config", "normalization", "RMSNorm"),
        ("--glu-activation geglu", "model_config", "hidden_act", "gelu"),
        ("--glu-activation geglu", "model_config", "gated_linear_unit", True),
        ("--glu_activation swiglu", "model_config", "hidden_act", "swiglu"),
        ("--position-embedding-type rotary", "model_config", "position_embedding_type", "rope"),
        ("--pad-vocab-size-to 160", "model_config", "vocab_size", 160),
        (
            "--extra-vocab-size 40 --make-vocab-size-divisible-by 1",
            "model_config",
            "vocab_size",
            140,
        ),
        (
            "--use-glm-rope",
            "model_config",
            "rotary_interleaved",
            1,
        ),
        ("--eval-iters -1", "training_config", "eval_iters", 0),
        ("--optimizer hybridadam", "optimizer_config", "optimizer_type", "adam"),
        ("--bf16 --o2-gradient", "training_config", "accumulate_allreduce_grads_in_fp32", False),
        ("--bf16 --o2-optimizer", "optimizer_config", "exp_avg_dtype", "bfloat16"),
        ("--bf16 --o2-optimizer", "optimizer_config", "exp_avg_sq_dtype", "bfloat16"),
        ("--swiglu --multiple-of 48", "model_config", "ffn_hidden_size", 192),
        (
            "--swiglu --multiple-of 8 --hidden-dim-multiplier 1.3",
            "model_config",
            "ffn_hidden_size",
            224,
        ),
        ("--swiglu --multiple-of 8 --ffn-hidden-size 80", "model_config", "ffn_hidden_size", 80),
        (
            f"--qk-layernorm --spec {SPECS}minimax_spec layer_spec",
            "model_config",
            "qk_layernorm_full",
            True,
        ),
        (
            f"--qk-layernorm --spec {SPECS}bailing_spec layer_spec",
            "model_config",
            "qk_layernorm_full",
            False,
        ),
        (
            f"--multi-latent-attention --rope-scaling-type plm --spec {SPECS}plm_spec layer_spec",
            "model_config",
            "qk_layernorm",
            True,
        ),
        ("--tokenizer-path t", "dataset_config", "tokenizer_model", "t"),
        ("--lora-r 4 --lora-target-modules linear_qkv", "lora_config", "use_lora", True),
        ("--lora-target-modules query_key_value --lora-dim 3", "lora_config", "lora_rank", 3),
        ("--peft-type lora", "lora_config", "use_lora", True),
        ("--lora-r 4", "lora_config", "use_lora", False),
        (
            "--lora-target-modules linear_qkv --load base --lora-load adapters",
            "lora_config",
            "base_model_name_or_path",
            "base",
        ),
        (
            "--lora-target-modules linear_qkv --load base --lora-load adapters",
            "training_config",
            "load_checkpoint",
            "adapters",
        ),
        ("--qk-layernorm --qk-layernorm-hidden-dim", "model_config", "qk_layernorm_full", True),
        ("--rotary-position-embeddings-theta 5000", "model_config", "rotary_base", 5000),
        (
            "--lr-decay-style WSD --lr-wsd-decay-iters 0",
            "optimizer_config",
            "lr_wsd_decay_iters",
            0,
        ),
        ("--train-iters 1_000", "training_config", "training_iters", 1000),
        (
            "--num-experts 4 --moe-model-type deepspeed_moe --disable-moe-token-dropping",
            "moe_config",
            "moe_expert_capacity_factor",
            None,
        ),
        ("--swiglu --full-attention-interval 4", "model_config", "linear_attention_freq", 4),
        ("--swiglu --full-attention-interval 4", "model_config", "attention_output_gate", True),
        ("--num-experts 4 --topk 3 --moe-num-capacity-bins 0", "moe_config", "moe_router_topk", 3),
        ("--save-interval 0", "training_config", "save_interval", None),
        ("--exit-interval 0", "training_config", "exit_interval", None),
        ("--exit-duration-in-mins 0", "training_config", "exit_duration_in_mins", None),
        ("--profile-dir there", "training_config", "profile_save_path", "there"),
        (
            "--normalization rmsnorm --use-fused-rmsnorm 0",
            "model_config",
            "normalization",
            "RMSNorm",
        ),
        ("--optimizer fusedadamw", "optimizer_config", "optimizer_type", "adam"),
        ("--num-experts 4 --moe-loss-coeff 0.5", "moe_config", "moe_aux_loss_coeff", 0.5),
        ("--num-experts 4 --topk-softmax-in-fp32", "moe_config", "moe_router_dtype", "fp32"),
        ("--num-experts 4 --moe-router-num-groups 2", "moe_config", "moe_router_num_groups", None),
        (
            "--num-experts 4 --num-shared-experts 2 --moe-ffn-hidden-size 32",
            "moe_config",
            "moe_shared_expert_intermediate_size",
            64,
        ),
        (
            "--num-experts 4 --tp-2d --tensor-model-parallel-size 2",
            "parallel_config",
            "sequence_parallel",
            True,
        ),
    ],
)
def test_names_of_forks_act(words, section, field, value):
    assert getattr(getattr(config(*words.split()), section), field) == value


def test_a_pipeline_that_counts_embeddings_is_cut_so():
    words = "--pp-partition-method type:transformer|embedding --pipeline-model-parallel-size 3"
    parallel = config(*words.split()).parallel_config
    assert parallel.account_for_embedding_in_pipeline_split
    assert parallel.account_for_loss_in_pipeline_split


def test_latent_attention_does_not_read_groups_of_queries():
    words = [*SMALL, "--multi-latent-attention", "--group-query-attention"]
    args = parse_args([*words, "--num-query-groups", "2"])
    assert not resolve(args).config.model_config.group_query_attention
    assert (
        "--group-query-attention, --num-query-groups have no effect with --multi-latent-attention"
        in no_effect_report(args)
    )


@pytest.mark.parametrize(("experts_per_token", "refused"), [("1", True), ("2", False)])
def test_noise_on_scores_is_refused_where_it_would_act(experts_per_token, refused):
    words = ["--num-experts", "4", "--moe-router-topk", experts_per_token]
    args = parse_args([*SMALL, *words, "--noisy-gate-policy", "RSample"])
    assert bool(args.refusals) is refused


def test_what_is_refused_by_name_is_told_before_what_follows_from_it():
    words = ["--num-experts", "4", "--moe-router-enable-expert-bias", "--num-zero-experts", "2"]
    with pytest.raises(ValueError, match="--num-zero-experts 2 is refused"):
        dry_run(parse_args([*SMALL, *words, "--world-size", "1"]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--train-mode finetune", "--sft"),
        ("--mlp-type residual", "plain GPT layer"),
        ("--skip-train-iteration-range 5-9", "--iterations-to-skip"),
        ("--pp-partition-method parameters", "--num-layer-list"),
        ("--bert-no-binary-head", "models are GPTs, not BERT or T5"),
        ("--decoder-seq-length 128", "models are GPTs, not BERT or T5"),
        ("--vision-model-type clip", "train a GPT"),
        ("--optimizer ademamix", "use adam or muon"),
        ("--enable-hetero", "use hosts of one kind"),
        ("--skip-iters-range 5 9", "--iterations-to-skip"),
        ("--optimizer dion", "use adam or muon"),
        ("--moe-num-capacity-bins 10", "--moe-expert-capacity-factor"),
        ("--fully-shard-model-parallel-size 2", "--use-megatron-fsdp"),
        ("--mtp-loss-scaling-factor-decay 0.15", "use --mtp-loss-scaling-factor"),
        ("--recompute-granularity mlp", "selective --recompute-modules mlp"),
        ("--load-tag best", "--ckpt-step"),
    ],
)
def test_what_forks_have_alone_is_refused_with_a_way_out(words, line):
    (refusal,) = parse_args([*SMALL, *words.split()]).refusals
    assert line in refusal


def test_a_tokenizer_of_bert_is_refused_in_a_plan_as_in_a_run():
    with pytest.raises(ValueError, match="BertWordPieceCase is BERT's, and models here are GPTs"):
        resolve(parse_args([*SMALL, "--tokenizer-type", "BertWordPieceCase"]))


def test_a_small_run_profiles_no_rank_it_has_not():
    words = ["--profile", "--profile-ranks", "0", "7", "--scale-down", "--world-size", "2"]
    assert not config(*words).training_config.profile_ranks
