# SPDX-License-Identifier: Apache-2.0
"""The arguments of the guide's tables: where each arrives, and its default."""

from argparse import Namespace

import pytest
from flag_words import (
    BF16,
    CP2,
    DATA,
    FP16,
    FP32,
    MODEL,
    OPTIM,
    PARALLEL,
    SIZES,
    TRAIN,
    VPP,
    read,
)

from mindspeed_ms.config import SECTION_CLASSES
from mindspeed_ms.config.section import field_default
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.flags import BY_NAME
from mindspeed_ms.training.from_args import (
    init_configs_from_args,
)

# --- the guide's tables: argument, field, default of the guide, words that set it, value read back.
# A default of ... means that the guide names none.

GQA = "--group-query-attention"
LIST = "[[1,1],[1,1]]"
SHAPE = ((1, 1), (1, 1))
GUIDE = [
    ("padded_vocab_size", MODEL + "vocab_size", ..., "--padded_vocab_size 1024", 1024),
    ("hidden_size", MODEL + "hidden_size", ..., "--hidden_size 128", 128),
    ("seq_length", MODEL + "seq_length", ..., "--seq_length 32", 32),
    ("rotary_base", MODEL + "rotary_base", 10000, "--rotary_base 500000", 500000),
    ("num_layers", MODEL + "num_layers", ..., "--num_layers 6", 6),
    (
        "position_embedding_type",
        MODEL + "position_embedding_type",
        "absolute",
        "--position_embedding_type rope",
        "rope",
    ),
    ("init_method_std", MODEL + "init_method_std", 0.01, "--init_method_std 0.03", 0.03),
    ("normalization", MODEL + "normalization", "LayerNorm", "--normalization RMSNorm", "RMSNorm"),
    ("norm_epsilon", MODEL + "norm_epsilon", 1e-5, "--norm_epsilon 1e-6", 1e-6),
    (
        "group_query_attention",
        MODEL + "group_query_attention",
        False,
        f"{GQA} --num-query-groups 2",
        True,
    ),
    ("num_attention_heads", MODEL + "num_attention_heads", ..., "--num_attention_heads 8", 8),
    ("num_query_groups", MODEL + "num_query_groups", 32, f"{GQA} --num_query_groups 2", 2),
    (
        "attention_dropout",
        MODEL + "attention_dropout_rate",
        0.0,
        "--attention_dropout 0.2",
        0.2,
    ),
    ("ffn_hidden_size", MODEL + "ffn_hidden_size", ..., "--ffn_hidden_size 96", 96),
    ("hidden_dropout", MODEL + "hidden_dropout_rate", 0.0, "--hidden_dropout 0.3", 0.3),
    (
        "attention_softmax_in_fp32",
        MODEL + "attention_softmax_in_fp32",
        True,
        "--attention_softmax_in_fp32",
        True,
    ),
    ("use_flash_attn", MODEL + "use_flash_attention", False, "--use_flash_attn", True),
    (
        "untie_embeddings_and_output_weights",
        MODEL + "untie_embeddings_and_output_weights",
        False,
        "--untie_embeddings_and_output_weights",
        True,
    ),
    ("transformer_impl", MODEL + "transformer_impl", "local", "--transformer_impl local", "local"),
    (
        "recompute_granularity",
        MODEL + "recompute_granularity",
        None,
        "--recompute_granularity selective",
        "selective",
    ),
    (
        "recompute_method",
        MODEL + "recompute_method",
        None,
        "--recompute_granularity full --recompute_method block --recompute_num_layers 1",
        "block",
    ),
    (
        "recompute_num_layers",
        MODEL + "recompute_num_layers",
        None,
        "--recompute_granularity full --recompute_method block --recompute_num_layers 2",
        2,
    ),
    (
        "fp16_lm_cross_entropy",
        MODEL + "fp16_lm_cross_entropy",
        False,
        "--fp16 --fp16_lm_cross_entropy",
        True,
    ),
    (
        "fp32_residual_connection",
        MODEL + "fp32_residual_connection",
        False,
        "--fp32_residual_connection",
        True,
    ),
    ("add_qkv_bias", MODEL + "qkv_has_bias", True, "--disable-bias-linear --add_qkv_bias", True),
    (
        "add_dense_bias",
        MODEL + "out_proj_has_bias",
        True,
        "--disable-bias-linear --add_dense_bias",
        True,
    ),
    ("add_bias_linear", MODEL + "add_bias_linear", False, "--add_bias_linear", True),
    ("use_sandwich_norm", MODEL + "use_sandwich_norm", False, "--use_sandwich_norm", True),
    ("pre_tockens", MODEL + "fa_config.pre_tokens", ..., "--pre_tockens 512", 512),
    ("next_tockens", MODEL + "fa_config.next_tokens", ..., "--next_tockens 1", 1),
    ("shape_order", MODEL + "fa_config.input_layout", ..., "--shape_order SBH", "SBH"),
    (
        "attn_post_norm_scale",
        MODEL + "attn_post_norm_scale",
        1.0,
        "--attn_post_norm_scale 0.0447",
        0.0447,
    ),
    (
        "ffn_post_norm_scale",
        MODEL + "ffn_post_norm_scale",
        1.0,
        "--ffn_post_norm_scale 0.0825",
        0.0825,
    ),
    ("params_dtype", MODEL + "params_dtype", FP32, "--params_dtype bf16", BF16),
    ("compute_dtype", MODEL + "compute_dtype", FP16, "--compute_dtype bfloat16", BF16),
    ("embedding_dtype", MODEL + "embedding_init_dtype", FP32, "--embedding_dtype fp16", FP16),
    ("use_fused_swiglu", MODEL + "apply_swiglu_fusion", False, "--use_fused_swiglu", True),
    ("apply_rope_fusion", MODEL + "apply_rope_fusion", False, "--apply_rope_fusion", True),
    ("hidden_act", MODEL + "hidden_act", "gelu", "--hidden_act squared_relu", "squared_relu"),
    ("seed", TRAIN + "seed", None, "--seed 7", 7),
    ("log_interval", TRAIN + "log_interval", None, "--log_interval 3", 3),
    ("train_iters", TRAIN + "training_iters", 0, "--train_iters 9", 9),
    ("save_interval", TRAIN + "save_interval", None, "--save_interval 4", 4),
    ("eval_interval", TRAIN + "eval_interval", None, "--eval_interval 5", 5),
    (
        "accumulate_allreduce_grads_in_fp32",
        TRAIN + "accumulate_allreduce_grads_in_fp32",
        False,
        "--accumulate_allreduce_grads_in_fp32",
        True,
    ),
    ("clip_grad", OPTIM + "clip_grad", 0.0, "--clip_grad 0.5", 0.5),
    ("bf16", TRAIN + "bf16", False, "--bf16", True),
    ("fp16", TRAIN + "fp16", False, "--fp16", True),
    ("loss_scale", TRAIN + "loss_scale", None, "--loss_scale 128", 128.0),
    ("initial_loss_scale", TRAIN + "loss_scale_value", None, "--initial_loss_scale 64", 64.0),
    ("loss_scale_window", TRAIN + "loss_scale_window", None, "--loss_scale_window 50", 50),
    ("hysteresis", TRAIN + "loss_scale_factor", None, "--hysteresis 3", 3.0),
    (
        "use_distributed_optimizer",
        TRAIN + "use_distributed_optimizer",
        False,
        "--use_distributed_optimizer",
        True,
    ),
    ("resume_training", TRAIN + "resume_training", False, "--resume_training", True),
    ("resume_crc_check", TRAIN + "crc_check", False, "--resume_crc_check", True),
    ("load", TRAIN + "load_checkpoint", "", "--load ckpt", "ckpt"),
    ("save", TRAIN + "output_dir", "./output", "--save out", "out"),
    ("ckpt_prefix", TRAIN + "prefix", "network", "--ckpt_prefix net", "net"),
    ("ckpt_format", TRAIN + "ckpt_format", "ckpt", "--ckpt_format safetensors", "safetensors"),
    ("keep_checkpoint_max", TRAIN + "keep_checkpoint_max", 5, "--keep_checkpoint_max 2", 2),
    ("wrap_with_ddp", TRAIN + "wrap_with_ddp", False, "--wrap_with_ddp True", True),
    ("bucket_size", TRAIN + "bucket_size", None, "--bucket_size 1000", 1000),
    ("enable_mem_align", TRAIN + "enable_mem_align", False, "--enable_mem_align", True),
    ("overlap_grad_reduce", TRAIN + "overlap_grad_reduce", False, "--overlap_grad_reduce", True),
    (
        "delay_grad_reduce",
        TRAIN + "delay_grad_reduce",
        False,
        "--overlap_grad_reduce --delay_grad_reduce",
        True,
    ),
    ("no_load_optim", TRAIN + "no_load_optim", False, "--no_load_optim", True),
    # The guide's default True says that the states are loaded, as its description does.
    ("no_load_rng", TRAIN + "no_load_rng", False, "--no_load_rng", True),
    ("new_dataset", TRAIN + "new_dataset", False, "--new_dataset", True),
    ("profile", TRAIN + "profile", False, "--profile", True),
    (
        "profile_save_path",
        TRAIN + "profile_save_path",
        "./output/profile",
        "--profile_save_path p",
        "p",
    ),
    ("profile_step_start", TRAIN + "profile_step_start", 1, "--profile_step_start 2", 2),
    ("profile_step_end", TRAIN + "profile_step_end", 5, "--profile_step_end 20", 20),
    ("profile_level", TRAIN + "profile_level", "level0", "--profile_level level2", "level2"),
    *(
        (f"profile_{name}", f"{TRAIN}profile_{name}", False, f"--profile_{name}", True)
        for name in (
            "with_stack",
            "memory",
            "communication",
            "parallel_strategy",
            "l2_cache",
            "hbm_ddr",
            "pcie",
            "data_process",
            "data_simplification",
            "offline_analyse",
        )
    ),
    ("profile_framework", TRAIN + "profile_framework", False, "--profile_framework True", True),
    (
        "profile_aicore_metrics",
        TRAIN + "profile_aicore_metrics",
        0,
        "--profile_aicore_metrics 2",
        2,
    ),
    ("profile_op_time", TRAIN + "profile_op_time", True, "--profile_op_time False", False),
    (
        "profile_dynamic_profiler_config_path",
        TRAIN + "profile_dynamic_profiler_config_path",
        "",
        "--profile_dynamic_profiler_config_path d",
        "d",
    ),
    ("micro_batch_size", DATA + "batch_size", 1, "--micro_batch_size 4", 4),
    ("micro_batch_num", DATA + "micro_batch_num", 1, "--micro_batch_num 3", 3),
    ("reset_attention_mask", DATA + "reset_attention_mask", ..., "--reset_attention_mask", True),
    ("reset_position_ids", DATA + "reset_position_ids", ..., "--reset_position_ids", True),
    ("eod_mask_loss", DATA + "eod_mask_loss", ..., "--eod_mask_loss", True),
    ("pad_token_id", DATA + "pad_token_id", ..., "--pad_token_id 6", 6),
    ("eos_token_id", DATA + "eos_token_id", 0, "--eos_token_id 5", 5),
    ("drop_remainder", DATA + "drop_remainder", True, "--drop_remainder False", False),
    ("optimizer", OPTIM + "optimizer_type", "AdamWeightDecay", "--optimizer sgd", "sgd"),
    ("adam_beta1", OPTIM + "betas", ..., "--adam_beta1 0.8", (0.8, 0.999)),
    ("adam_beta2", OPTIM + "betas", ..., "--adam_beta2 0.95", (0.9, 0.95)),
    ("adam_eps", OPTIM + "eps", ..., "--adam_eps 1e-6", 1e-6),
    ("lr_decay_style", OPTIM + "lr_decay_style", "constant", "--lr_decay_style cosine", "cosine"),
    ("lr", OPTIM + "learning_rate", 1e-3, "--lr 2e-4", 2e-4),
    ("min_lr", OPTIM + "min_lr", 0.0, "--min_lr 1e-5", 1e-5),
    ("lr_warmup_iters", OPTIM + "lr_warmup_iters", 0, "--lr_warmup_iters 3", 3),
    ("lr_decay_iters", OPTIM + "lr_decay_iters", ..., "--lr_decay_iters 30", 30),
    (
        "use_checkpoint_opt_param_scheduler",
        OPTIM + "use_checkpoint_opt_param_scheduler",
        True,
        "--use_checkpoint_opt_param_scheduler",
        True,
    ),
    (
        "override_opt_param_scheduler",
        OPTIM + "override_opt_param_scheduler",
        False,
        "--override_opt_param_scheduler",
        True,
    ),
    ("weight_decay", OPTIM + "weight_decay", 0.0, "--weight_decay 0.1", 0.1),
    (
        "overlap_param_gather",
        OPTIM + "overlap_param_gather",
        False,
        "--use_distributed_optimizer --overlap_grad_reduce --overlap_param_gather",
        True,
    ),
    (
        "start_weight_decay",
        OPTIM + "start_weight_decay",
        0.0,
        "--weight_decay_incr_style linear --start_weight_decay 0.1 --end_weight_decay 0.2",
        0.1,
    ),
    (
        "end_weight_decay",
        OPTIM + "end_weight_decay",
        0.0,
        "--weight_decay_incr_style linear --start_weight_decay 0.1 --end_weight_decay 0.2",
        0.2,
    ),
    (
        "weight_decay_incr_style",
        OPTIM + "weight_decay_incr_style",
        "constant",
        "--weight_decay_incr_style cosine --start_weight_decay 0.1 --end_weight_decay 0.2",
        "cosine",
    ),
    (
        "tensor_model_parallel_size",
        PARALLEL + "tensor_model_parallel_size",
        1,
        "--tensor_model_parallel_size 2",
        2,
    ),
    (
        "context_parallel_size",
        PARALLEL + "context_parallel_size",
        1,
        "--context_parallel_size 2",
        2,
    ),
    (
        "context_parallel_algo",
        PARALLEL + "context_parallel_algo",
        "ulysses_cp_algo",
        f"{CP2} --context_parallel_algo megatron_cp_algo",
        "megatron_cp_algo",
    ),
    (
        "ulysses_degree_in_cp",
        PARALLEL + "ulysses_degree_in_cp",
        None,
        f"{CP2} --context_parallel_algo hybrid_cp_algo --ulysses_degree_in_cp 2",
        2,
    ),
    (
        "expert_model_parallel_size",
        PARALLEL + "expert_model_parallel_size",
        1,
        "--num-experts 4 --expert_model_parallel_size 2",
        2,
    ),
    (
        "virtual_pipeline_model_parallel_size",
        PARALLEL + "virtual_pipeline_model_parallel_size",
        None,
        "--pipeline-model-parallel-size 2 --virtual_pipeline_model_parallel_size 2",
        2,
    ),
    (
        "num_layers_per_virtual_pipeline_stage",
        PARALLEL + "num_layers_per_virtual_pipeline_stage",
        ...,
        "--pipeline-model-parallel-size 2 --num_layers_per_virtual_pipeline_stage 1",
        1,
    ),
    (
        "sequence_parallel",
        PARALLEL + "sequence_parallel",
        False,
        "--tensor-model-parallel-size 2 --sequence_parallel",
        True,
    ),
    (
        "pipeline_model_parallel_size",
        PARALLEL + "pipeline_model_parallel_size",
        1,
        "--pipeline_model_parallel_size 2",
        2,
    ),
    ("num_layer_list", PARALLEL + "num_layer_list", ..., f"{VPP} --num_layer_list {LIST}", SHAPE),
    ("recompute", PARALLEL + "recompute", None, f"{VPP} --recompute {LIST}", SHAPE),
    ("select_recompute", PARALLEL + "select_recompute", None, "--select_recompute [1]", (1,)),
    (
        "select_comm_recompute",
        PARALLEL + "select_comm_recompute",
        None,
        "--select_comm_recompute [1]",
        (1,),
    ),
]
IDS = [row[0] for row in GUIDE]


def test_all_rows_of_the_guide_are_here():
    assert len(GUIDE) == len(set(IDS)) == 124


@pytest.mark.parametrize(("dest", "path", "default", "words", "expected"), GUIDE, ids=IDS)
def test_a_flag_of_the_guide_arrives_in_its_field(dest, path, default, words, expected):
    del default
    args = parse_args([*SIZES, *words.split()])
    assert hasattr(args, dest)
    assert read(init_configs_from_args(args), path) == expected


@pytest.mark.parametrize(
    ("path", "default"), [(row[1], row[2]) for row in GUIDE if row[2] is not ...]
)
def test_fields_have_the_guides_defaults(path, default):
    section, _, key = path.partition(".")
    if key == "profile_save_path" or key.endswith("_weight_decay"):
        assert getattr(SECTION_CLASSES[section](), key) == default  # follows from other fields
    else:
        assert field_default(SECTION_CLASSES[section], key) == default


@pytest.mark.parametrize(("dest", "path", "default", "words", "expected"), GUIDE, ids=IDS)
def test_a_bare_namespace_maps_too(dest, path, default, words, expected):
    """User code may bring its own Namespace that has only some of the attributes."""
    del default
    full = parse_args([*SIZES, *words.split()])
    asked = {BY_NAME[word].dest for word in words.split() if word.startswith("--")}
    keep = {*(BY_NAME[word].dest for word in SIZES if word.startswith("--")), *asked}
    bare = Namespace(**{name: value for name, value in vars(full).items() if name in keep})
    assert dest in keep
    assert read(init_configs_from_args(bare), path) == expected


@pytest.mark.parametrize(
    ("words", "kept"),
    [("", 0), ("--save-retain-interval 100", 1), ("--keep-checkpoint-max 3", 3)],
)
def test_a_command_line_keeps_every_checkpoint_unless_told_otherwise(words, kept):
    """As Megatron, which removes none, or with a retain interval all but the newest between."""
    config = init_configs_from_args(parse_args([*SIZES, *words.split()]))
    assert config.training_config.keep_checkpoint_max == kept
