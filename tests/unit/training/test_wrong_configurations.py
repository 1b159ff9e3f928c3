# SPDX-License-Identifier: Apache-2.0
"""What users get wrong, each with the one line they see: given, rule, fix; no traceback."""

import re

import pytest

from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.dry_run import dry_run
from mindspeed_ms.training.entry import user_errors

SIZES = {
    "--num-layers": "4",
    "--hidden-size": "64",
    "--num-attention-heads": "4",
    "--seq-length": "64",
    "--max-position-embeddings": "64",
    "--micro-batch-size": "2",
    "--padded-vocab-size": "512",
    "--lr": "1e-3",
}


def ending(words, capsys):
    """Run ``--dry-run`` with the usual sizes and these words; return (status, standard error)."""
    given = words if isinstance(words, list) else words.split()
    sizes = [part for name, value in SIZES.items() if name not in given for part in (name, value)]
    capsys.readouterr()
    status = 0
    try:
        args = parse_args([*sizes, *given, "--dry-run"])
        with user_errors():
            status = dry_run(args)
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr()


TP, PP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"
FLAGS = [
    # sizes that do not divide
    ("--hidden-size 66", "hidden_size (66) must be divisible by num_attention_heads (4)"),
    (f"{TP} 3", "num_attention_heads (4) must be divisible by tensor_model_parallel_size (3)"),
    (f"{TP} 4 --ffn-hidden-size 130", "ffn_hidden_size (130) must be divisible by tensor"),
    (f"{TP} 4 --padded-vocab-size 510", "vocab_size (510) must be divisible by tensor"),
    (
        f"{TP} 2 --num-attention-heads 6 --hidden-size 48 --group-query-attention "
        "--num-query-groups 3",
        "num_query_groups (3) must be a multiple or divisor of tensor_model_parallel_size (2)",
    ),
    (
        "--group-query-attention --num-query-groups 3",
        "num_attention_heads (4) must be divisible by num_query_groups (3); use 1, 2, 4 groups",
    ),
    (
        f"{TP} 4 --sequence-parallel --seq-length 62",
        "seq_length (62) must be divisible by tensor_model_parallel_size with sequence_parallel",
    ),
    (f"{PP} 3", "num_layers (4) must be divisible by pipeline_model_parallel_size (3); use 3 or 6"),
    (f"{PP} 8", "pipeline_model_parallel_size (8) must not exceed num_layers (4)"),
    (
        f"{PP} 2 --num-layers-per-virtual-pipeline-stage 3",
        "num_layers (4) must be divisible by pipeline stages × num_layers_per_virtual_pipeline",
    ),
    (
        f"{PP} 2 --virtual-pipeline-model-parallel-size 3",
        "num_layers (4) must be divisible by pipeline stages × chunks per stage (6)",
    ),
    (
        "--virtual-pipeline-model-parallel-size 2",
        "needs pipeline_model_parallel_size of at least 2",
    ),
    (
        f"{PP} 2 --virtual-pipeline-model-parallel-size 2 --global-batch-size 6 --world-size 2",
        "3 micro-batches in groups of 2 leave a last group of 1",
    ),
    ("--context-parallel-size 3", "seq_length (64) must be divisible by 2 × context_parallel_size"),
    (f"{TP} 2 --world-size 3", "world size (3) must be a multiple of tensor (2)"),
    (f"{TP} 2 {PP} 2 --world-size 2", "start 4 ranks or lower one of the sizes"),
    (
        "--global-batch-size 7 --world-size 2",
        "global_batch_size (7) must be divisible by batch_size (2) × data-parallel size (2)",
    ),
    (
        "--rampup-batch-size 4 3 100 --global-batch-size 8",
        "global_batch_size (8) must be the rampup start (4) plus a multiple of its increment (3)",
    ),
    ("--rampup-batch-size 4 4 100", "rampup start (4)"),
    (
        "--num-experts 6 --expert-model-parallel-size 4 --world-size 4",
        "num_experts (6) must be divisible by expert_model_parallel_size (4)",
    ),
    ("--num-experts 2 --moe-router-topk 3", "moe_router_topk (3) must not exceed num_experts (2)"),
    ("--expert-model-parallel-size 2", "needs experts, but num_experts is 1"),
    (
        "--max-position-embeddings 32",
        "max_position_embeddings (32) must be at least seq_length (64)",
    ),
    ("--kv-channels 15 --position-embedding-type rope", "rope rotates 15 elements of each head"),
    (
        "--use-distributed-optimizer --num-distributed-optimizer-instances 3 --world-size 4",
        "must cut the 4 data × context parallel ranks into equal parts",
    ),
    (
        "--num-experts 4 --moe-layer-freq [1,0]",
        "moe_layer_freq lists 2 layers, but num_layers is 4",
    ),
    (f"{PP} 2 --num-layer-list [1,2]", "holds 3 layers, but num_layers is 4; make them equal"),
    (f"{PP} 2 --num-layer-list [4]", "num_layer_list has shape (1,), but must have shape (2,)"),
    (f"{PP} 2 --num-layer-list [4,0]", "has a stage without layers"),
    (f"{PP} 2 --pipeline-model-parallel-layout Et|ttL", "places 3 layers"),
    (f"{PP} 2 --pipeline-model-parallel-layout Et|txL", "contains 'x'; write E (embedding)"),
    ("--noop-layers 4", "noop_layers names layer 4, but layers are numbered 0 to 3"),
    # contradictory flags
    ("--fp16 --bf16", "--fp16 and --bf16 exclude each other; keep one of them"),
    ("--train-iters 5 --train-samples 5", "--train-iters and --train-samples exclude each other"),
    ("--train-samples 5 --lr-decay-iters 5", "--train-samples and --lr-decay-iters exclude"),
    ("--lr-warmup-fraction 0.1 --lr-warmup-iters 5", "exclude each other; keep one of them"),
    (
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1 "
        "--recompute 2",
        "both say what to recompute; keep one",
    ),
    ("--recompute-granularity full", "recompute_granularity full needs recompute_method; choose"),
    (
        "--recompute-method block --recompute-num-layers 1",
        "recompute_method block needs recompute_granularity full",
    ),
    (
        "--recompute-granularity full --recompute-method block",
        "recompute_method block needs recompute_num_layers; give 1 to 4",
    ),
    (
        "--recompute-granularity full --recompute-method block --recompute-num-layers 9",
        "recompute_num_layers (9) must not exceed num_layers (4)",
    ),
    (
        "--recompute-granularity selective --recompute-modules mpl",
        "recompute_modules names 'mpl'",
    ),
    ("--overlap-param-gather", "overlap_param_gather needs use_distributed_optimizer"),
    (
        "--use-distributed-optimizer --overlap-param-gather",
        "overlap_param_gather needs overlap_grad_reduce",
    ),
    ("--delay-grad-reduce", "delay_grad_reduce needs overlap_grad_reduce"),
    ("--min-lr 1", "min_lr (1.0) must not exceed learning_rate (0.001)"),
    ("--decoupled-min-lr 1e-4", "decoupled_min_lr needs decoupled_lr"),
    ("--lr-decay-style WSD", "lr_decay_style WSD needs the length of its last part"),
    ("--weight-decay-incr-style linear", "needs --start-weight-decay; give both ends"),
    (
        "--start-weight-decay 0.1 --end-weight-decay 0.2",
        "(0.2) differ although weight_decay_incr_style is constant",
    ),
    ("--data-path a --train-data-path b", "keep either data_path or the per-split paths"),
    (
        "--drop-remainder False --world-size 2",
        "drop_remainder False would give the 2 ranks micro-batches of different sizes",
    ),
    ("--bucket-size 100 --ddp-num-buckets 2", "both state how gradients are cut; keep one"),
    (
        "--use-checkpoint-opt_param-scheduler --override-opt_param-scheduler",
        "exclude each other",
    ),
    ("--fp16-lm-cross-entropy", "fp16_lm_cross_entropy needs compute_dtype float16"),
    ("--moe-pad-expert-input-to-capacity", "needs moe_expert"),
    # missing values and needed companions
    ("--num-layers", "argument --num-layers/--num_layers: expected one argument"),
    ("--rampup-batch-size 1 2", "expected 3 arguments"),
    ("--save x", "--save needs --save-interval; give the number of iterations"),
    ("--save x --save-interval 0", "--save-interval is 0, but with --save must be at least 1"),
    ("--context-parallel-size 4 --context-parallel-algo hybrid_cp_algo", "needs ulysses_degree"),
    # wrong types and values
    ("--num-layers four", "invalid int value: 'four'"),
    ("--num-layers 0", "num_layers (0) must be at least 1"),
    ("--lr fast", "invalid float value: 'fast'"),
    ("--lr -1", "learning_rate (-1.0) must be larger than 0"),
    ("--hidden-dropout 1.5", "hidden_dropout_rate (1.5) must lie between 0 and 1"),
    ("--adam-beta1 1.0", "betas[0] (1.0) must lie in [0, 1)"),
    ("--lr-decay-style cosin", "invalid choice: 'cosin'"),
    ("--compute-dtype int4", "invalid dtype value: 'int4'"),
    ("--loss-scale 0", "loss_scale (0.0) must be larger than 0"),
    ("--order", "unknown flag --order"),
    ("--moe-layer-freq [1,x] --num-experts 2", "invalid number_or_list value: '[1,x]'"),
    (f"{TP} $TP", "invalid int value: '$TP' (a shell variable that was not expanded?)"),
    # unknown flags
    ("--hiden-size 3", "unknown flag --hiden-size; did you mean --hidden-size?"),
    ("--num-layer 3", "abbreviations are not accepted, write --num-layer"),
    ("-lr 3", "unknown flag -lr"),
    ("stray", "unexpected word 'stray'; values follow the flag they belong to"),
    ("--yaml nowhere.yaml", "there is no configuration file nowhere.yaml"),
    ("--yaml-cfg nowhere.yaml", "there is no configuration file nowhere.yaml"),
    ("--yaml tiny_gpt.yaml --yaml-cfg x.yaml", "two layouts of one thing; keep one of them"),
]


@pytest.mark.parametrize(("words", "message"), FLAGS, ids=[words for words, _ in FLAGS])
def test_wrong_flags_end_with_one_line(words, message, capsys):
    status, output = ending(words, capsys)
    assert status == 2, output.out[-500:]
    assert output.err.count("\n") == 1 and "Traceback" not in output.err, output.err
    assert message in output.err, output.err


def test_the_table_is_long_enough():
    assert len(FLAGS) + len(FILES) >= 90
    assert len(set(FLAGS)) == len(FLAGS)


GOOD = """
model_config: {vocab_size: 512, num_layers: 4, hidden_size: 64, num_attention_heads: 4,
  seq_length: 64}
"""
FILES = [
    ("model_config: [1, 2]", "model_config is [1, 2], but must hold key: value pairs"),
    ("model_config: {vocab_size: 512}", "num_layers is missing; give it, it has no default"),
    ("modle_config: {}", "unknown key 'modle_config' in the file; did you mean 'model_config'?"),
    (
        GOOD + "training_config: {sed: 3}",
        "unknown key 'sed' in training_config; did you mean 'seed'",
    ),
    (GOOD + "training_config: {bf16: maybe}", "bf16 is 'maybe', but must be true or false"),
    (GOOD + "training_config: {training_iters: 1.5}", "training_iters is 1.5, but must be a whole"),
    (GOOD + "optimizer_config: {betas: [0.9]}", "betas is [0.9], but must be a list of 2 items"),
    (GOOD + "training_config: {seed: 1, seed: 2}", "key 'seed' is written twice"),
    (GOOD + "parallel_config: {tensor_model_parallel_size: 8}", "num_attention_heads (4) must be"),
    (GOOD + "parallel_config:\n\t- x", "is not valid YAML: "),
    ("just words", "holds no keys; a configuration file has sections"),
    ("", "holds no keys"),
    ("base: wrong.yaml\n", "builds on itself through base"),
    ("base: 3\n" + GOOD, "base is 3, but must be a file name or a list of them"),
    ("base: other.yaml\n" + GOOD, "there is no configuration file other.yaml"),
    (GOOD + "dataset_config: {batch_size: 1, micro_batch_size: 2}", "gives both 'batch_size' and"),
    (GOOD + "training_config: {fp16: True, bf16: True}", "exclude each other; keep one of them"),
    (
        GOOD + "training_config: {use_distributed_optimizer: True}",
        "needs the flat gradient buffers",
    ),
    ("accelerate_config: {parallelization: 3}", "parallelization is 3, but must hold key: value"),
    ("accelerate_config: {parallelization: {tensor_paralel: 8}}", "unknown key 'tensor_paralel'"),
]


@pytest.mark.parametrize(("text", "message"), FILES, ids=[message for _, message in FILES])
def test_wrong_files_end_with_one_line(text, message, capsys, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    capsys.readouterr()
    status = 0
    try:
        args = parse_args(["--yaml", str(path), "--dry-run"])
        with user_errors():
            status = dry_run(args)
    except SystemExit as end:
        status = end.code
    err = capsys.readouterr().err
    assert status == 2
    assert err.count("\n") == 1 and "Traceback" not in err, err
    assert message in err, err


@pytest.mark.parametrize("content", [b"\xff\xfe\x00model", b"a: [1, 2", b"a: 'x"])
def test_unreadable_files_end_with_one_line(content, capsys, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        parse_args(["--yaml", str(path)])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1
    assert re.search(r"is not a text file|is not valid YAML", err), err


def test_a_folder_is_no_file(capsys, tmp_path):
    with pytest.raises(SystemExit):
        parse_args(["--yaml", str(tmp_path)])
    assert "there is no configuration file" in capsys.readouterr().err


def test_a_world_size_is_for_plans_only():
    words = [part for pair in SIZES.items() for part in pair]
    with pytest.raises(ValueError, match="--world-size 8 is for --dry-run, but 2 ranks run"):
        validate_args(parse_args([*words, "--world-size", "8"]), 2)
