# SPDX-License-Identifier: Apache-2.0
"""Scripts of the predecessor in the ways that their users write them, on one rank."""

import numpy as np
import pytest
import tiny_models
from mindspore import ParameterTuple, Tensor, nn, ops
from mindspore.common.api import _pynative_executor

from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.config import (
    LoraConfig,
    ModelParallelConfig,
    MoEConfig,
    TrainingConfig,
    TransformerConfig,
    set_global_args,
)
from mindspeed_ms.core.tensor_parallel.random import RNGStateTracer, get_rng_tracer
from mindspeed_ms.legacy.model import (
    ParallelAttention,
    ParallelLMLogits,
    ParallelMLP,
    ParallelTransformerLayer,
    TransformerLanguageModel,
)
from mindspeed_ms.legacy.model.enums import AttnMaskType
from mindspeed_ms.legacy.model.language_model import Embedding
from mindspeed_ms.legacy.model.module import Module
from mindspeed_ms.legacy.model.moe.experts import SequentialMLP
from mindspeed_ms.legacy.model.moe.moe_layer import MoELayer
from mindspeed_ms.legacy.model.moe.router import TopKRouter
from mindspeed_ms.legacy.model.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from mindspeed_ms.training import TrainOneStepCell, get_loss_func

SIZES = {**tiny_models.SCRIPT, "mask_func_type": "attn_mask_fill"}
MASK = np.triu(np.ones((1, 1, 8, 8)), 1).astype(np.uint8)


@pytest.fixture(autouse=True)
def tape_is_off(single_rank):
    """As in a script's own process."""
    _pynative_executor.set_grad_flag(False)


class OwnModel(Module):
    """A language model and its head, put together by a script."""

    def __init__(self, config):
        super().__init__(config=config)
        self.language_model = TransformerLanguageModel(config, AttnMaskType.causal)
        self.head = ParallelLMLogits(config=config, bias=False)
        self.loss = get_loss_func(config.training_config)

    def construct(self, input_ids, labels, loss_mask):
        states = self.language_model(input_ids, None, Tensor(MASK))
        weight = self.language_model.embedding.word_embeddings.weight
        logits = self.head(states, weight, parallel_output=True)
        return self.loss(
            logits.reshape((-1, logits.shape[-1])), labels.reshape((-1,)), loss_mask.reshape((-1,))
        )


def model_and_batches():
    parallel = ModelParallelConfig()
    training = TrainingConfig(parallel)
    config = TransformerConfig(**SIZES, parallel_config=parallel, training_config=training)
    model, rng = OwnModel(config), np.random.default_rng(0)
    for param in model.trainable_params():
        param.set_data(Tensor(rng.normal(size=param.shape, scale=0.1).astype(np.float32)))
    batches = [
        (*(Tensor(rng.integers(0, 32, (2, 8)).astype(np.int32)) for _ in range(2)), ones())
        for _ in range(2)
    ]
    return config, model, batches


def ones():
    return Tensor(np.ones((2, 8), np.float32))


def losses_of(way):
    """Two steps of plain descent."""
    config, model, batches = model_and_batches()
    params = model.trainable_params()
    optimizer = nn.SGD(params, 0.1)
    if way == "cell":
        step = TrainOneStepCell(model, optimizer, None, config.training_config, config)
        return [float(step(*batch)[0].asnumpy()) for batch in batches]
    if way == "mindspore's cell":
        step = nn.TrainOneStepCell(model, optimizer).set_train()
        return [float(step(*batch).asnumpy()) for batch in batches]
    if way == "gradients by list":
        gradient, found = ops.GradOperation(get_by_list=True)(model, ParameterTuple(params)), []
        for batch in batches:
            found.append(float(model(*batch).asnumpy()))
            optimizer(gradient(*batch))
        return found

    def forward(ids, labels, mask):
        return model(ids, labels, loss_mask=mask)

    gradient, found = ops.value_and_grad(forward, None, optimizer.parameters), []
    for batch in batches:
        loss, grads = gradient(*batch)
        optimizer(grads)
        found.append(float(loss.asnumpy()))
    return found


@pytest.mark.parametrize("way", ["mindspore's cell", "function", "gradients by list"])
def test_loops_of_ones_own_are_steps_of_the_cell(way):
    assert losses_of(way) == pytest.approx(losses_of("cell"), rel=1e-6)


def test_parts_of_a_layer_learn_inside_a_cell_of_ones_own():
    config = TransformerConfig(**SIZES)

    class Block(nn.Cell):
        def __init__(self):
            super().__init__()
            self.attention = ParallelAttention(config, 1)
            self.mlp = ParallelMLP(config=config)

        def construct(self, x, mask):
            for part in (self.attention(x, mask), self.mlp(x)):
                output, bias = part
                x = x + (output if bias is None else output + bias)
            return x

    states = Tensor(np.random.default_rng(0).normal(size=(2, 8, 16)).astype(np.float32))
    block = Block()
    loss = nn.MSELoss()
    gradient = ops.value_and_grad(
        lambda x: loss(block(x, Tensor(MASK)), x * 0), None, block.trainable_params()
    )
    optimizer = nn.Adam(block.trainable_params(), 1e-2)
    losses = []
    for _ in range(3):
        value, grads = gradient(states)
        optimizer(grads)
        losses.append(float(value.asnumpy()))
    assert losses[0] > losses[1] > losses[2]


def test_a_layer_of_experts_put_together_by_a_script():
    config = TransformerConfig(
        **SIZES, mlp_has_bias=False, moe_config=MoEConfig(num_experts=4, moe_router_topk=2)
    )
    layer = MoELayer(config, layer_number=1)
    hidden = Tensor(np.random.default_rng(0).normal(size=(8, 2, 16)).astype(np.float32))
    router, experts = TopKRouter(config), SequentialMLP(4, config)
    dispatcher = MoEAlltoAllTokenDispatcher(4, [0, 1, 2, 3], config)
    for mine, theirs in ((router, layer.router), (experts, layer.experts)):
        for to, source in zip(mine.trainable_params(), theirs.trainable_params(), strict=True):
            to.set_data(source)
    scores, indices = router(hidden)
    rows, counts = dispatcher.token_permutation(hidden, scores, indices)
    rows, bias = experts(rows, counts)
    output, bias = dispatcher.token_unpermutation(rows, bias)
    assert bias is None
    np.testing.assert_allclose(output.asnumpy(), layer(hidden)[0].asnumpy(), rtol=1e-5, atol=1e-7)


def test_adapters_alone_learn_in_a_model_of_a_scripts_own():
    lora = LoraConfig(use_lora=True, lora_rank=2, target_cells=[{"target_cells": [".*.qkv_proj"]}])
    config = TransformerConfig(
        **{**SIZES, "init_method_std": 0.3},
        training_config=TrainingConfig(ModelParallelConfig()),
        lora_config=lora,
    )
    model = OwnModel(config)
    params = model.trainable_params()
    assert len(params) == 2 * 2 and all("lora_" in param.name for param in params)
    start = {param.name: param.asnumpy().copy() for param in model.get_parameters()}
    assert all(start[param.name].any() == ("lora_A" in param.name) for param in params)
    ids = Tensor(np.random.default_rng(0).integers(0, 32, (2, 8)).astype(np.int32))
    step = TrainOneStepCell(model, nn.Adam(params, 5e-2), None, config.training_config, config)
    losses = [float(step(ids, ids, ones())[0].asnumpy()) for _ in range(3)]
    assert losses[2] < losses[0] - 1e-3
    for param in model.get_parameters():
        assert (param.asnumpy() != start[param.name]).any() == ("lora_" in param.name)


def test_an_embedding_without_positions_counts_them():
    config = TransformerConfig(**{**SIZES, "position_embedding_type": "learned_absolute"})
    table = Embedding(16, 32, 8, 0.0, config)
    ids = Tensor(np.zeros((2, 6), np.int32))
    places = Tensor(np.tile(np.arange(6, dtype=np.int32), (2, 1)))
    np.testing.assert_array_equal(table(ids, None).asnumpy(), table(ids, places).asnumpy())


def test_dropout_needs_no_seed(caplog):
    get_rng_tracer().reset()
    config = TransformerConfig(**SIZES, attention_dropout=0.5, hidden_dropout=0.5)
    layer = ParallelTransformerLayer(config, 1).set_train()
    states = Tensor(np.random.default_rng(0).normal(size=(2, 8, 16)).astype(np.float32))
    with caplog.at_level("WARNING"):
        first, second = (layer(states, Tensor(MASK)).asnumpy() for _ in range(2))
    assert (first != second).any()
    told = [line for line in caplog.messages if "random streams" in line]
    assert told == ["the random streams are not seeded; those of seed 0 are taken"]


def test_a_stream_that_a_script_starts_itself():
    tracer = RNGStateTracer()
    tracer.init_mode("own", 3)
    before = tracer.get_state()["mindspore"]["own"]
    with tracer.rng_fork("own"):
        pass
    assert (tracer.get_state()["mindspore"]["own"] == before).all()
    with pytest.raises(RuntimeError, match="'other' does not exist"), tracer.rng_fork("other"):
        pass


def test_arguments_of_shared_sequences_mean_nothing_where_none_are_shared():
    parallel_state.destroy_model_parallel()
    arguments = ModelParallelConfig(
        context_parallel_size=4, context_parallel_algo="hybrid_cp_algo", ulysses_degree_in_cp=2
    )
    set_global_args(arguments)
    parallel_state.initialize_model_parallel()
    assert parallel_state.get_context_parallel_world_size() == 1
    set_global_args(ModelParallelConfig())
