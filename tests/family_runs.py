# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family on one rank and on several."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pipeline_runs
from family_cases import BATCH, LENGTH

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import named_buffers, named_parameters, shard_of
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.parallel_setup import set_parallel_context, set_seed
from mindspeed_ms.engine.run import Run, StepFunctions
from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.models.model import EMBEDDING
from mindspeed_ms.plan.region import Span
from mindspeed_ms.training.checkpoint_config import config_of, spec_of


def configuration(folder, layout, **training):
    """The model's configuration in a layout, all numbers in fp32."""
    catalog = open_checkpoint(find_checkpoint(Path(folder)), spec_of)
    stated = config_of(catalog.common).to_dict()
    model = {**stated["model_config"], "compute_dtype": "float32", "params_dtype": "float32"}
    model |= {
        "residual_connection_dtype": "float32",
        "seq_length": LENGTH,
        "attention_dropout_rate": 0,
    }
    model |= {"hidden_dropout_rate": 0.0}
    given = {
        "model_config": model,
        "moe_config": stated["moe_config"],
        "parallel_config": layout,
        "training_config": training,
        "dataset_config": {"batch_size": 1},
        # Where a gradient is nothing but rounding, Adam must not make a step of it.
        "optimizer_config": {"learning_rate": 3e-3, "clip_grad": 1.0, "adam_eps": 1e-3},
    }
    return catalog, assemble(given)


def built(folder, layout):
    """This rank's part of the model, filled from the folder."""
    comm.init_process_group()
    parallel_state.destroy_model_parallel()
    catalog, config = configuration(folder, layout)
    set_parallel_context(config.parallel_config)
    set_seed(1234)
    model = GPTModel(
        config.model_config,
        parallel_output=False,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    model.set_train(False)
    with TensorReader() as reader:
        for name, param in [*named_parameters(model), *named_buffers(model)]:
            stored = catalog.tensors.get(name) or catalog.tensor(EMBEDDING)
            region = shard_of(param).region(param.shape)
            array = reader.read_span(stored, Span.all_of(region), "F32")
            memory.as_numpy(param).reshape(-1)[...] = array
    return model


def logits_of(model, tokens):
    """Logits [s, v] of one sequence, on every rank."""
    ids = memory.from_numpy(np.array([tokens], np.int32))
    places = memory.from_numpy(np.arange(len(tokens), dtype=np.int32)[None])
    with autograd.no_grad():
        if parallel_state.get_pipeline_model_parallel_world_size() == 1:
            return memory.as_numpy(model(ids, places, None))[0]
        hidden = None
        if parallel_state.is_pipeline_first_stage():
            hidden = memory.as_numpy(model(ids, places, None))
        hidden = next(part for part in comm.all_gather_object(hidden) if part is not None)
        result = None
        if parallel_state.is_pipeline_last_stage():
            model.set_input_tensor(memory.from_numpy(hidden))
            result = memory.as_numpy(model(ids, places, None))[0]
        return next(part for part in comm.all_gather_object(result) if part is not None)


def padded(tokens, multiple):
    """Tokens and zeros behind, which causal attention hides."""
    return [*tokens, *[0] * (-len(tokens) % multiple)]


def forward_worker(folder, layout, prompt, new):
    """(logits of the prompt, tokens that follow greedily)."""
    model = built(folder, layout)
    first, tokens = logits_of(model, prompt), list(prompt)
    for _ in range(new):
        # A sequence is cut between ranks; a longer one would turn the angles of some models.
        logits = logits_of(model, padded(tokens, layout.get("tensor_model_parallel_size", 1)))
        tokens.append(int(logits[len(tokens) - 1].argmax()))
    parallel_state.destroy_model_parallel()
    return np.array(first), tokens[len(prompt) :]


def layout_worker(folder, layout, prompt, new):
    """Both: logits, tokens, and the steps of a training."""
    return *forward_worker(folder, layout, prompt, new), training_worker(folder, layout)


def training_worker(folder, layout, iterations=3):
    """Losses and gradient norms of a few steps from the folder's weights."""
    comm.init_process_group()
    steps = []
    _, config = configuration(
        folder,
        layout,
        training_iters=iterations,
        global_batch_size=BATCH,
        load_checkpoint=str(folder),
        finetune=True,
        save_checkpoints=False,
    )
    run = Run(
        config,
        lambda pre_process, post_process: GPTModel(
            get_all_config().model_config, pre_process=pre_process, post_process=post_process
        ),
        train_data_loader=_Batches(),
        functions=StepFunctions(
            on_step=lambda step: steps.append((step.losses["lm loss"], step.grad_norm))
        ),
    )
    with run:
        run.train()
    return steps


class _Batches:
    """The same four samples in every step, dealt out to the data parallel ranks."""

    def __iter__(self):
        ranks = parallel_state.get_data_parallel_world_size()
        for index in itertools.count(parallel_state.get_data_parallel_rank(), ranks):
            fields = pipeline_runs.sample(index % BATCH, LENGTH)
            yield {name: np.minimum(values, 47)[None] for name, values in fields.items()}
