# SPDX-License-Identifier: Apache-2.0
"""Names that MindSpeed and MindSpeed-LLM have for experts."""

import pytest

from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.from_args import init_configs_from_args

COMMON = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --vocab-size 64 "
    "--max-position-embeddings 16 --micro-batch-size 1 --num-experts 8 --moe-ffn-hidden-size 16 "
    "--disable-bias-linear --tokenizer-type NullTokenizer"
)


def moe_of(words):
    return init_configs_from_args(parse_args(f"{COMMON} {words}".split())).moe_config


SAME = {
    "--seq-aux --moe-aux-loss-coeff 0.01": {"moe_router_load_balancing_type": "seq_aux_loss"},
    "--moe-use-sinkhorn": {"moe_router_load_balancing_type": "sinkhorn"},
    "--norm-topk-prob": {"moe_router_norm_topk_prob": True},
    "--router-gating-in-fp32": {"moe_router_dtype": "fp32"},
    "--moe-device-level-aux-loss-coeff 0.05": {"moe_device_level_aux_loss_coeff": 0.05},
    "--moe-comm-aux-loss-coeff 0.02": {"moe_comm_aux_loss_coeff": 0.02},
    "--moe-router-load-balancing-type softmax_topk": {
        "moe_router_load_balancing_type": "none",
        "moe_router_pre_softmax": True,
    },
    "--moe-router-load-balancing-type group_limited_greedy --n-group 4 --topk-group 2 --seq-aux": {
        "moe_router_load_balancing_type": "seq_aux_loss",
        "moe_router_pre_softmax": True,
        "moe_router_num_groups": 4,
    },
    "--moe-router-load-balancing-type noaux_tc --moe-router-enable-expert-bias": {
        "moe_router_load_balancing_type": "none",
        "moe_router_score_function": "sigmoid",
        "moe_router_pre_softmax": False,
    },
    "--add-bias-linear": {"moe_router_has_bias": True},
    "--add-bias-linear --moe-router-has-bias false": {"moe_router_has_bias": False},
    "": {"moe_router_has_bias": False, "moe_router_load_balancing_type": "aux_loss"},
}


@pytest.mark.parametrize("words", SAME)
def test_a_name_of_mindspeed_says_the_same(words):
    moe = moe_of(words)
    assert {name: getattr(moe, name) for name in SAME[words]} == SAME[words]


@pytest.mark.parametrize(
    ("words", "layers"),
    [
        ("--first-k-dense-replace 1", (False, True, True, True)),
        ("--first-k-dense-replace 1 --moe-layer-freq 2", (False, False, True, False)),
        ("--first-k-dense-replace 0", (True, True, True, True)),
    ],
)
def test_the_first_layers_are_dense(words, layers):
    assert moe_of(words).moe_layers(4) == layers


def test_two_ways_to_list_expert_layers_contradict_each_other():
    with pytest.raises(ValueError, match="both say which layers"):
        moe_of("--moe-layer-freq [0,1,1,1] --first-k-dense-replace 1")
