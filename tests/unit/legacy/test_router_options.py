# SPDX-License-Identifier: Apache-2.0
"""What routers do beyond choosing the best: formulas in NumPy."""

import moe_reference as oracle
import numpy as np
import ops_reference as ref
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import DatasetConfig, MoEConfig
from mindspeed_ms.core import aux_losses
from mindspeed_ms.core.expert_bias import chosen_by_quantiles, update_experts
from mindspeed_ms.core.parameter import named_buffers
from mindspeed_ms.core.tensor_parallel.random import seed_initialization
from mindspeed_ms.engine.layer_losses import expected_losses
from mindspeed_ms.legacy.model.moe import MoELayer

pytestmark = pytest.mark.usefixtures("single_rank")
SEQ, BATCH, HIDDEN, EXPERTS, TOPK = 5, 2, 6, 8, 2
RNG = np.random.RandomState(3)


def config(**moe):
    values = {"num_experts": EXPERTS, "moe_router_topk": TOPK, "moe_ffn_hidden_size": 4, **moe}
    own = {
        "num_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": 8,
        "seq_length": SEQ,
        "init_method_std": 0.5,
        "position_embedding_type": "none",
        "dataset_config": DatasetConfig(batch_size=BATCH),
        "moe_config": MoEConfig(**values),
    }
    return model_config(LLAMA, NO_BIAS, own)


def router_of(**moe):
    seed_initialization(11)
    return MoELayer(config(**moe), layer_number=1).router.set_train(True)


def routed(router, x):
    with autograd.recording():
        routing = router(ref.tensor(x))
        return ref.values(routing.probs), routing.experts


def logits_of(router, x):
    return x.reshape(-1, HIDDEN) @ ref.values(router.weight).T


def test_weights_are_roots_of_softplus_that_sum_to_one():
    x = RNG.randn(SEQ, BATCH, HIDDEN)
    router = router_of(moe_router_score_function="sqrtsoftplus", moe_router_topk_scaling_factor=2.0)
    probs, experts = routed(router, x)
    scores = np.sqrt(np.logaddexp(logits_of(router, x), 0.0))
    best = np.argsort(-scores, axis=1)[:, :TOPK]
    np.testing.assert_array_equal(experts, best)
    taken = np.take_along_axis(scores, best, axis=1)
    np.testing.assert_allclose(probs, 2 * taken / taken.sum(1, keepdims=True), rtol=1e-5)


def test_weights_of_a_softmax_over_all_are_made_to_sum_to_one():
    x = RNG.randn(SEQ, BATCH, HIDDEN)
    plain, _ = routed(router_of(moe_router_pre_softmax=True), x)
    normed, _ = routed(router_of(moe_router_pre_softmax=True, moe_router_norm_topk_prob=True), x)
    assert (plain.sum(1) < 0.99).all()
    np.testing.assert_allclose(normed, plain / plain.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "seq_aux_loss"])
def test_groups_of_experts_are_balanced_as_deepseek_v2_says(kind):
    x = RNG.randn(SEQ, BATCH, HIDDEN)
    moe = {
        "moe_router_num_groups": 4,
        "moe_router_group_topk": 2,
        "moe_router_load_balancing_type": kind,
        "moe_router_pre_softmax": True,
        "moe_device_level_aux_loss_coeff": 0.05,
        "moe_comm_aux_loss_coeff": 0.02,
    }
    router = router_of(**moe)
    aux_losses.begin_step(1.0)
    _, experts = routed(router, x)
    recorded = aux_losses.collect(expected_losses(config(**moe)), 1, 1)
    probs = np.array([oracle.softmax(row) for row in logits_of(router, x)])
    sequences = BATCH if kind == "seq_aux_loss" else 1
    device, visits = [], []
    for sequence in range(sequences):
        tokens = range(sequence, SEQ * BATCH, sequences)
        for_one = [0.0, 0.0]
        for group in range(4):
            mine = (2 * group, 2 * group + 1)
            chosen = sum((experts[token] == one).sum() for token in tokens for one in mine)
            visiting = sum(bool(np.isin(experts[token], mine).any()) for token in tokens)
            mean = sum(probs[token][one] for token in tokens for one in mine) / len(tokens)
            for_one[0] += chosen * EXPERTS / (TOPK * len(tokens)) / 2 * mean
            for_one[1] += visiting * 4 / (2 * len(tokens)) * mean
        device.append(for_one[0])
        visits.append(for_one[1])
    assert recorded["load_balancing_device_level_loss"][0] == pytest.approx(np.mean(device), 1e-5)
    assert recorded["load_balancing_comm_level_loss"][0] == pytest.approx(np.mean(visits), 1e-5)


def test_thresholds_even_out_what_experts_get():
    x = RNG.randn(64, BATCH, HIDDEN) + 0.7
    router = router_of(moe_router_load_balancing_type="quantile_balancing")
    logits = logits_of(router, x).astype(np.float32)
    spread = []
    for _ in range(6):
        _, experts = routed(router, x)
        spread.append(np.bincount(experts.reshape(-1), minlength=EXPERTS).std())
        before = memory.as_numpy(router.qb_beta).copy()
        expected, wanted = chosen_by_quantiles(logits, before, TOPK)
        assert (experts != expected).mean() < 0.02  # logits of the other product, at the bar
        update_experts([param for _, param in named_buffers(router)])
        np.testing.assert_allclose(
            memory.as_numpy(router.qb_beta), wanted - wanted.mean(), atol=1e-5
        )
    assert spread[-1] < spread[0] / 2
    router.set_train(False)
    routed(router, x)
    assert router.qb_beta.quantiles.num_microbatches == 0


def test_a_quantile_lets_as_many_tokens_in_as_an_even_share():
    logits = RNG.randn(16, 4).astype(np.float32)
    experts, wanted = chosen_by_quantiles(logits, np.zeros(4, np.float32), 1)
    np.testing.assert_array_equal(experts[:, 0], logits.argmax(1))
    above = logits - np.sort(logits, axis=1)[:, -2:-1]
    np.testing.assert_array_equal(wanted, -np.sort(-above, axis=0)[4])  # 4 others are above it


def test_a_forced_bias_is_the_same_in_every_step():
    x = RNG.randn(SEQ, BATCH, HIDDEN)
    router = router_of(moe_router_force_biased=100.0)
    _, first = routed(router, x)
    _, again = routed(router, RNG.randn(SEQ, BATCH, HIDDEN))
    assert (np.sort(first) == np.sort(first)[0]).all()
    assert (np.sort(first) == np.sort(again)).all()


BAD = {
    "one weight": ({"moe_apply_probs_on_input": True}, "moe_router_topk 1"),
    "no loss beside quantiles": (
        {"moe_router_load_balancing_type": "quantile_balancing", "moe_aux_loss_coeff": 0.1},
        "takes no loss",
    ),
    "no groups beside quantiles": (
        {
            "moe_router_load_balancing_type": "quantile_balancing",
            "moe_router_num_groups": 4,
            "moe_router_group_topk": 2,
        },
        "by logits alone",
    ),
    "narrow and overlapped": (
        {
            "moe_latent_size": 4,
            "moe_shared_expert_intermediate_size": 4,
            "moe_shared_expert_overlap": True,
        },
        "does not go together",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_contradict_each_other_are_refused(name):
    moe, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        config(**moe)
