# SPDX-License-Identifier: Apache-2.0
"""Pipeline stages of a script's own, written against the predecessor's API."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor, mint, nn, ops
from mindspore.common.api import _pynative_executor

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.config import (
    DatasetConfig,
    ModelParallelConfig,
    OptimizerConfig,
    TrainingConfig,
    TransformerConfig,
)
from mindspeed_ms.core.optimizer.distrib_optimizer import DistributedOptimizer
from mindspeed_ms.core.parallel_state import initialize_model_parallel
from mindspeed_ms.legacy.model.module import Module
from mindspeed_ms.legacy.model.transformer import _get_num_layers
from mindspeed_ms.training import TrainOneStepCell, get_model
from mindspeed_ms.training.training import train


def begin(**sizes):
    """What every script does first, in a process whose tape is off, as a script's is."""
    _pynative_executor.set_grad_flag(False)
    parallel_state.destroy_model_parallel()
    comm.init_process_group()
    initialize_model_parallel(**sizes)


class Stage(Module):
    """Some of eight layers, an embedding and a tied head of the script's own."""

    def __init__(self, config, layers, pre_process, post_process):
        super().__init__(config, share_embeddings_and_output_weights=False)
        self.pre_process, self.post_process = pre_process, post_process
        self.layers = nn.CellList()
        for index in layers:
            values = np.random.default_rng(index).normal(size=(8, 8)).astype(np.float32) * 0.3
            self.layers.append(nn.Dense(8, 8, weight_init=Tensor(values), has_bias=False))
        self.received = None

    def set_input_tensor(self, tensor):
        self.received = tensor

    def construct(self, x, target):
        hidden = x if self.pre_process else self.received
        for layer in self.layers:
            hidden = ops.tanh(layer(hidden)) + hidden
        if not self.post_process:
            return hidden
        return (hidden - target).square().mean()


def pipeline_worker(stages, virtual, layer_list, layout):
    chunked = {"virtual_pipeline_model_parallel_size": virtual} if virtual else {}
    begin(pipeline_model_parallel_size=stages, **chunked)
    parallel = ModelParallelConfig(
        pipeline_model_parallel_size=stages, num_layer_list=layer_list, **chunked
    )
    training = TrainingConfig(
        parallel, DatasetConfig(batch_size=2, micro_batch_num=4, data_layout=layout), epochs=2
    )
    config = TransformerConfig(
        vocab_size=8,
        num_layers=8,
        num_attention_heads=1,
        hidden_size=8,
        seq_length=4,
        parallel_config=parallel,
        training_config=training,
        compute_dtype="float32",
    )

    def provider(pre_process=True, post_process=True):
        count, first = _get_num_layers(config, None)
        assert count == _get_num_layers(config, None)
        return Stage(config, range(first, first + count), pre_process, post_process)

    network = get_model(provider, training)
    optimizer = nn.Adam(network.trainable_params(), learning_rate=1e-2)
    step = TrainOneStepCell(network, optimizer, None, training, config)
    rng = np.random.default_rng(1)
    data = [
        {
            "x": Tensor(rng.normal(size=(8, 4, 8)).astype(np.float32)),
            "target": Tensor(rng.normal(size=(8, 4, 8)).astype(np.float32)),
        }
    ]
    return train(step, data, training)


class CopyingStage(Module):
    """Layers with a tied table, whose input is copied into a parameter that is not trained."""

    def __init__(self, config, pre_process, post_process):
        super().__init__(config)
        self.pre_process, self.post_process = pre_process, post_process
        self.alone = parallel_state.get_pipeline_model_parallel_world_size() == 1
        rng = np.random.default_rng(5)
        table = rng.normal(size=(8, 8)).astype(np.float32)
        if pre_process:
            self.table = Parameter(Tensor(table), name="table")
        if post_process and not self.alone:  # zeros, until it gets the first stage's values
            self.table = Parameter(Tensor(np.zeros_like(table)), name="table")
        if pre_process or post_process:
            self.shared_weight_name_list.append(self.table.name)
        count, first = _get_num_layers(config, None)
        self.layers = nn.CellList()
        for index in range(first, first + count):
            values = np.random.default_rng(index).normal(size=(8, 8)).astype(np.float32) * 0.3
            self.layers.append(nn.Dense(8, 8, weight_init=Tensor(values), has_bias=False))
        if not self.alone:
            zeros = Tensor(np.zeros((2, 4, 8), np.float32))
            self.set_hidden_states = Parameter(zeros, name="hidden", requires_grad=False)

    def set_input_tensor(self, tensor):
        self.set_hidden_states.set_data(tensor, slice_shape=True)

    def construct(self, x, target):
        hidden = ops.matmul(x, self.table) if self.pre_process else self.set_hidden_states
        for layer in self.layers:
            hidden = ops.tanh(layer(hidden)) + hidden
        if not self.post_process:
            return hidden
        return (ops.matmul(hidden, self.table.T) - target).square().mean()


def copying_worker(stages, wrapped):
    begin(pipeline_model_parallel_size=stages)
    parallel = ModelParallelConfig(pipeline_model_parallel_size=2)  # its file says so, alone too
    training = TrainingConfig(
        parallel, DatasetConfig(batch_size=2, micro_batch_num=4), training_iters=3
    )
    sizes = {"seq_length": 4, "compute_dtype": "float32"}
    config = TransformerConfig(8, 4, 1, 8, 8, parallel, training, **sizes)
    training.wrap_with_ddp = wrapped
    training.use_distributed_optimizer = wrapped

    def provider(pre_process=True, post_process=True):
        return CopyingStage(config, pre_process, post_process)

    network = get_model(provider, training)
    params = network.trainable_params()
    if wrapped:
        inner = mint.optim.AdamW(params, lr=1e-2, weight_decay=0.0)
        buffers = {index: chunk.buffers for index, chunk in enumerate(network)}
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        optimizer = DistributedOptimizer(
            inner, OptimizerConfig(parallel), None, None, buffers, group
        )
    else:
        optimizer = nn.Adam(params, learning_rate=1e-2)
    step = TrainOneStepCell(network, optimizer, None, training, config)
    rng = np.random.default_rng(1)
    values = {name: rng.normal(size=(8, 4, 8)).astype(np.float32) for name in ("x", "target")}
    return train(step, [{name: Tensor(value) for name, value in values.items()}] * 3, training)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_stage_that_copies_its_input_and_ties_its_table(dist_run, wrapped):
    (alone,) = dist_run(copying_worker, ranks=1, stages=1, wrapped=wrapped)
    results = dist_run(copying_worker, ranks=2, stages=2, wrapped=wrapped)
    assert alone[2] < alone[1] < alone[0]
    np.testing.assert_allclose(results[1], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("stages", "virtual", "layer_list"),
    [(4, None, [2, 3, 1, 2]), (2, 2, [[1, 2], [3, 2]])],
)
def test_pipelines_of_a_scripts_own_stages(dist_run, stages, virtual, layer_list):
    (alone,) = dist_run(
        pipeline_worker, ranks=1, stages=1, virtual=None, layer_list=None, layout="BSH"
    )
    results = dist_run(
        pipeline_worker,
        ranks=stages,
        stages=stages,
        virtual=virtual,
        layer_list=layer_list,
        layout="BSH",
    )
    assert len(alone) == 2 and alone[1] < alone[0]
    np.testing.assert_allclose(results[-1], alone, rtol=1e-5)
    assert results[0] == [0.0, 0.0]
