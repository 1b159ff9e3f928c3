# SPDX-License-Identifier: Apache-2.0
"""Flags of MindSpeed that state a layout in other words."""

import pytest

from mindspeed_ms.config import TrainingConfig
from mindspeed_ms.engine.batch_counts import is_evaluated, num_evaluations
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.flags.layout import _layout_of_stages
from mindspeed_ms.training.from_args import init_configs_from_args

SIZES = (
    "--num-layers 8 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --lr 1e-3 "
    "--max-position-embeddings 32 --micro-batch-size 1 --global-batch-size 8 --train-iters 10 "
    "--padded-vocab-size 512"
)
EXPERTS = "--num-experts 4 --moe-ffn-hidden-size 32"


def config_of(words, world=8):
    args = validate_args(parse_args(f"{SIZES} {words}".split()), world)
    return init_configs_from_args(args).validate(world)


def test_layers_of_stages_and_chunks():
    config = config_of(
        "--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 1 "
        "--pipeline-num-transformer-layers [[0,1],[1,1]*2,[3,0]]"
    )
    placement = layer_placement(config.model_config, config.parallel_config)
    assert placement.counts == ((0, 1, 1, 3), (1, 1, 1, 0))


@pytest.mark.parametrize("words", ["[[1,2],[3]]", "[1,2]", "[[1,x]]", "", "[[1,1]*2", "8"])
def test_what_is_no_list_of_stages_is_refused(words):
    with pytest.raises(ValueError, match="must list the layers of every stage's chunks"):
        _layout_of_stages(words)


@pytest.mark.parametrize(
    ("given", "run"),
    [("adaptive_cp_algo", "megatron_cp_algo"), ("hybrid_adaptive_cp_algo", "hybrid_cp_algo")],
)
def test_adaptive_context_parallelism_is_the_same_exchange(given, run):
    words = f"--context-parallel-size 4 --context-parallel-algo {given}"
    words += " --ulysses-degree-in-cp 2" if "hybrid" in given else ""
    assert config_of(words).parallel_config.context_parallel_algo == run


@pytest.mark.parametrize(
    ("flag", "text", "size"),
    [
        ("--layerzero --layerzero-config", "zero3_size: 4\nparam_dtype: bf16\n", 4),
        ("--use-torch-fsdp2 --fsdp2-config-path", "sharding_size: 2\n", 2),
        ("--use-torch-fsdp2 --fsdp2-config-path", "sharding_size: auto\n", None),
        ("--layerzero --layerzero-config", "transformer_layers: null\n", None),
    ],
)
def test_files_about_sharding_say_who_shares_a_copy(tmp_path, flag, text, size):
    path = tmp_path / "sharding.yaml"
    path.write_text(text)
    parallel = config_of(f"{flag} {path}").parallel_config
    assert (parallel.zero_level, parallel.zero_shard_size) == ("z3", size)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("- 1\n", "holds no keys; give zero3_size: N"),
        ("zero3_size: many\n", "zero3_size is 'many'; give the number of ranks"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_file_about_sharding_is_one_line(tmp_path, text, message):
    path = tmp_path / "sharding.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as found:
        config_of(f"--layerzero --layerzero-config {path}")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("topk", "pre_softmax"), [(1, True), (2, False)])
def test_deepspeed_experts_take_a_limited_number_of_tokens(topk, pre_softmax):
    words = f"{EXPERTS} --moe-router-topk {topk} --moe-model-type deepspeed_moe"
    moe = config_of(f"{words} --moe-train-capacity-factor 1.1").moe_config
    assert moe.moe_expert_capacity_factor == 1.1 and moe.moe_token_drop_policy == "position"
    assert moe.moe_router_pre_softmax is pre_softmax
    assert config_of(words).moe_config.moe_expert_capacity_factor == 1.0


def test_megatron_experts_take_all_tokens():
    moe = config_of(f"{EXPERTS} --moe-model-type megatron_moe").moe_config
    assert moe.moe_expert_capacity_factor is None and moe.moe_token_drop_policy == "probs"


@pytest.mark.parametrize(
    ("first", "expected"), [(0, [4, 8, 12]), (4, [4, 8, 12]), (5, [8, 12]), (13, [])]
)
def test_evaluations_begin_where_they_are_asked_to(first, expected):
    training = TrainingConfig(eval_interval=4, start_eval_at_iter=first)
    assert [step for step in range(1, 14) if is_evaluated(training, step)] == expected
    assert num_evaluations(training, 13) == len(expected)


def test_the_signal_that_ends_a_run_can_be_chosen():
    training = config_of("--exit-signal-handler --exit-signal SIGUSR1").training_config
    assert training.exit_signal == "SIGUSR1"
