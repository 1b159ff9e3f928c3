# SPDX-License-Identifier: Apache-2.0
"""Which options of experts change what a trained model computes."""

import pytest
from tiny_models import LLAMA, NO_BIAS

from mindspeed_ms.config.build import assemble
from mindspeed_ms.models.identity import identity

EXPERTS = {"num_experts": 4, "moe_ffn_hidden_size": 8}


def identity_of(**moe):
    sizes = {**LLAMA, **NO_BIAS, "num_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    own = {name: value for name, value in sizes.items() if not name.endswith("_config")}
    own |= {"vocab_size": 64, "seq_length": 16}
    return identity(assemble({"model_config": own, "moe_config": {**EXPERTS, **moe}}))


SAME = [
    {"seq_aux": True},
    {"moe_comm_aux_loss_coeff": 0.1, "moe_device_level_aux_loss_coeff": 0.1},
    {"moe_use_upcycling": True, "moe_upcycling_granularity": 2},
    {"moe_router_norm_topk_prob": True},
    {"moe_router_norm_topk_prob": True, "moe_router_pre_softmax": True},
    {"moe_router_weights": "normalized"},
    {"moe_router_weights": "normalized", "moe_router_pre_softmax": True},
]
OTHER = [
    {"moe_router_load_balancing_type": "quantile_balancing"},
    {"moe_router_load_balancing_type": "sinkhorn"},
    {"moe_router_pre_softmax": True},
    {"moe_router_weights": "scores", "moe_router_pre_softmax": True},
    {"first_k_dense_replace": 1},
    {"moe_router_score_function": "sqrtsoftplus"},
]


@pytest.mark.parametrize("moe", SAME, ids=str)
def test_what_only_training_does_is_not_part_of_a_model(moe):
    assert identity_of(**moe) == identity_of()


@pytest.mark.parametrize("moe", OTHER, ids=str)
def test_what_chooses_and_weighs_experts_is(moe):
    assert identity_of(**moe) != identity_of()


def test_first_dense_layers_may_be_spelled_as_a_list():
    assert identity_of(first_k_dense_replace=1) == identity_of(moe_layer_freq=[0, 1])


SIGMOID = {"moe_router_score_function": "sigmoid"}


@pytest.mark.parametrize(
    ("topk", "weights", "usual"),
    [(2, "normalized", True), (2, "scores", False), (1, "scores", True), (1, "normalized", False)],
)
def test_weights_of_sigmoids_are_known_by_what_they_are(topk, weights, usual):
    plain = identity_of(**SIGMOID, moe_router_topk=topk)
    given = identity_of(**SIGMOID, moe_router_topk=topk, moe_router_weights=weights)
    assert (given == plain) is usual


def test_scores_of_a_softmax_over_the_chosen_are_refused():
    with pytest.raises(ValueError, match="moe_router_weights scores takes shares of all experts"):
        identity_of(moe_router_weights="scores")
