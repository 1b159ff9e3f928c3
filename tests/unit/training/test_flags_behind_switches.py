# SPDX-License-Identifier: Apache-2.0
"""A flag that is read only while another one is on says so when that is off."""

import pytest
from flag_words import SIZES

from mindspeed_ms.models.identity import identity
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.flags import BY_NAME, ROWS, Field
from mindspeed_ms.training.flags.switches import NOT_WITH, SWITCH_OF_FIELD
from mindspeed_ms.training.from_args import init_configs_from_args, no_effect_report

ON = {
    "--num-experts": ["--num-experts", "4"],
    "--mtp-num-layers": ["--mtp-num-layers", "1"],
    "--wandb-project": ["--wandb-project", "p"],
    "--experimental-attention-variant": ["--experimental-attention-variant", "gated_delta_net"],
    "--logits-save-dir": ["--logits-save-dir", "d"],
    "--logits-load-dir": ["--logits-load-dir", "d"],
    "--decoupled-lr": ["--decoupled-lr", "0.1"],
    "--rampup-batch-size": ["--rampup-batch-size", "2", "2", "8", "--global-batch-size", "4"],
    "--moe-router-enable-expert-bias": [
        *("--moe-router-enable-expert-bias", "--moe-router-score-function", "sigmoid"),
    ],
}


def report(*words):
    return no_effect_report(parse_args([*SIZES, *words]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "--num-query-groups 2",
            "--num-query-groups has no effect without --group-query-attention",
        ),
        ("--rope-scaling-factor 4", "--rope-scaling-factor has no effect without"),
        (
            "--initial-loss-scale 4096 --hysteresis 3",
            "--initial-loss-scale, --hysteresis have no effect without --fp16",
        ),
        ("--q-lora-rank 8", "--q-lora-rank has no effect without --multi-latent-attention"),
        ("--moe-router-topk 1", "--moe-router-topk has no effect without --num-experts"),
        ("--lora-r 4", "--lora-r has no effect without --use-lora"),
        ("--wandb-entity me", "--wandb-entity has no effect without --wandb-project"),
        ("--mtp-loss-scaling-factor 0.2", "has no effect without --mtp-num-layers"),
        (
            "--mup-base-hidden-size 32 --mup-embedding-mult 2 --mup-output-mult 2 "
            "--mup-base-head-dim 8 --mup-attn-scale-power 0.5",
            "--mup-attn-scale-power have no effect without --use-mup",
        ),
        (
            "--linear-attention-freq 2 --linear-conv-kernel-dim 2 --linear-key-head-dim 8 "
            "--linear-value-head-dim 8 --linear-num-key-heads 4 --linear-num-value-heads 4",
            "--linear-num-value-heads have no effect without --experimental-attention-variant",
        ),
        (
            "--dsa-indexer-n-heads 4 --dsa-indexer-head-dim 8 --dsa-indexer-topk 4 "
            "--dsa-indexer-loss-coeff 0.1 --dsa-indexer-use-sparse-loss",
            "--dsa-indexer-use-sparse-loss have no effect without --experimental-attention-variant",
        ),
        (
            "--logits-save-top-k 4 --logits-save-top-p 0.5 --logits-save-top-p-min-k 2 "
            "--logits-save-dtype bf16",
            "--logits-save-dtype have no effect without --logits-save-dir",
        ),
        (
            "--logits-load-kd-loss-alpha 0.5 --logits-load-ignore-errors",
            "--logits-load-ignore-errors have no effect without --logits-load-dir",
        ),
        (
            "--num-experts 4 --moe-train-capacity-factor 0.5",
            "--moe-train-capacity-factor has no effect without --moe-model-type deepspeed_moe",
        ),
        ("--lion-beta1 0.5", "--lion-beta1 has no effect without --optimizer lion"),
        ("--soap-eps 1e-6", "--soap-eps has no effect without --optimizer soap"),
        ("--muon-momentum 0.5", "--muon-momentum has no effect without --optimizer muon"),
        ("--fim-rate 0.25", "--fim-rate has no effect without --fim-data"),
        ("--prompt-type qwen", "--prompt-type has no effect without --is-instruction-dataset"),
        (
            "--sft-tokenizer-prompt-format default",
            "--sft-tokenizer-prompt-format has no effect without --sft",
        ),
        (
            "--num-experts 4 --moe-router-bias-update-rate 0.5",
            "--moe-router-bias-update-rate has no effect without --moe-router-enable-expert-bias",
        ),
        (
            "--rampup-save-interval 2",
            "--rampup-save-interval has no effect without --rampup-batch-size",
        ),
        ("--sgd-momentum 0.5", "--sgd-momentum has no effect without --optimizer sgd"),
        ("--lr-wsd-decay-iters 2", "has no effect without --lr-decay-style WSD"),
        ("--decoupled-min-lr 0.1", "--decoupled-min-lr has no effect without --decoupled-lr"),
        ("--exit-signal SIGINT", "--exit-signal has no effect without --exit-signal-handler"),
        (
            "--num-experts 4 --moe-upcycling-granularity 2",
            "--moe-upcycling-granularity has no effect without --moe-use-upcycling",
        ),
    ],
)
def test_the_switch_is_named_when_it_is_off_alone(words, line):
    (said,) = report(*words.split())
    assert line in said
    switch = said.rpartition(" without ")[2]
    assert not report(*words.split(), *ON.get(switch, switch.split()))


@pytest.mark.parametrize(
    "words",
    [
        "--optimizer dist_muon --muon-momentum 0.5",
        "--optimizer muon --muon-scalar-optimizer lion --lion-beta1 0.5",
    ],
)
def test_what_is_on_in_another_way_is_not_named(words):
    assert not report(*words.split())


@pytest.mark.parametrize(
    ("words", "line", "read"),
    [
        (
            "--adam-beta1 0.5 --adam-eps 1e-3 --optimizer sgd",
            "--adam-beta1, --adam-eps have no effect with --optimizer sgd",
            "--optimizer muon",
        ),
        (
            "--rotary-base 100 --position-embedding-type none",
            "--rotary-base has no effect with --position-embedding-type none",
            "--position-embedding-type rope",
        ),
    ],
)
def test_the_value_is_named_that_closes_a_flag(words, line, read):
    assert report(*words.split()) == [line]
    kept = words.split(read.split()[0])[0]
    assert not report(*kept.split(), *read.split())


def test_every_switch_and_field_exists():
    fields = {row.state.path for row in ROWS if isinstance(row.state, Field)}
    for (choice, value), closed in NOT_WITH.items():
        assert value in BY_NAME[choice].choices and set(closed) <= set(BY_NAME)
    for switch, (section, names) in SWITCH_OF_FIELD.items():
        assert switch.partition(" ")[0] in BY_NAME
        flags = {name for name in names if name.startswith("--")}
        assert flags <= set(BY_NAME)
        assert {section + name for name in names if name not in flags} <= fields
        assert any(field.startswith(section) for field in fields)


@pytest.mark.parametrize(
    "words", ["--num-query-groups 2", "--rope-scaling-factor 4", "--q-lora-rank 8", "--lora-r 4"]
)
def test_what_is_said_to_change_nothing_changes_nothing(words):
    configs = [init_configs_from_args(parse_args([*SIZES, *more])) for more in ([], words.split())]
    assert identity(configs[0]) == identity(configs[1])


def test_what_a_plan_refuses_is_not_called_usual():
    args = parse_args([*SIZES, "--hybrid-mlp-ratio", "0.5", "--dry-run"])
    assert args.refusals and not no_effect_report(args)
