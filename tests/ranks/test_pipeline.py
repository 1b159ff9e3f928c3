# SPDX-License-Identifier: Apache-2.0
"""Pipeline stages: every layout trains like one rank, and holds no more than its schedule says."""

import dataclasses
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pipeline_runs as runs
import pytest
from mindspore.nn import Cell

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.config import ModelParallelConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import create_parameter, named_parameters
from mindspeed_ms.core.pipeline_parallel import get_forward_backward_func
from mindspeed_ms.core.tensor_parallel.random import seed_initialization
from mindspeed_ms.engine.forward_step import default_forward_step
from mindspeed_ms.engine.model_chunks import build_model_chunks, get_model
from mindspeed_ms.engine.train_loop import mean_losses
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.legacy.model.transformer import plan_of_this_chunk

pytestmark = [pytest.mark.ranks, pytest.mark.slow]


def pp(stages, *more):
    return ["--pipeline-model-parallel-size", str(stages), *more]


CHUNKS2 = ["--num-virtual-stages-per-pipeline-rank", "2"]
TP2 = ["--tensor-model-parallel-size", "2"]

# --- every layout trains the same model from the same seed


REFERENCE = {}


def train_worker(style, flags):
    return runs.train(style, flags)


def reference(dist_run, style, flags=()):
    """The run without a pipeline, on as many data parallel ranks."""
    key = (style, tuple(flags))
    if key not in REFERENCE:
        results = dist_run(train_worker, ranks=4, timeout=200.0, style=style, flags=list(flags))
        REFERENCE[key] = results[0]
    return REFERENCE[key]


LAYOUTS = {
    "pp4": pp(4),
    "pp2-dp2": pp(2),
    "pp2-vpp2-dp2": pp(2, *CHUNKS2),
    "pp2-tp2-sp": pp(2, *TP2, "--sequence-parallel"),
    "pp4-vpp2": pp(4, *CHUNKS2),
    "pp2-groups": pp(2, *TP2, *CHUNKS2, "--microbatch-group-size-per-virtual-pipeline-stage", "3"),
    "pp4-list": pp(4, "--num-layer-list", "[1,3,2,2]"),
    "pp2-vpp2-list": pp(2, *CHUNKS2, "--num-layer-list", "[[1,3],[2,2]]"),
    "pp4-layout": pp(4, "--pipeline-model-parallel-layout", "Et|ttt|tttt|L"),
    "pp4-ends": pp(
        4,
        *("--decoder-first-pipeline-num-layers", "1"),
        *("--decoder-last-pipeline-num-layers", "3"),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_the_same_seed_gives_the_same_losses(dist_run, style, name):
    expected = reference(dist_run, style)
    results = dist_run(train_worker, ranks=4, timeout=200.0, style=style, flags=LAYOUTS[name])
    for result in results:
        # fp32 sums over micro-batches and ranks in another order
        np.testing.assert_allclose(result, expected, rtol=2e-6, atol=2e-6)


def test_an_fp32_residual_stream_travels_between_stages(dist_run):
    flags = ["--bf16", "--fp32-residual-connection"]
    expected = reference(dist_run, "llama", flags)
    assert not np.allclose(expected, reference(dist_run, "llama", ["--bf16"]), atol=1e-4)
    results = dist_run(train_worker, ranks=4, timeout=200.0, style="llama", flags=pp(4, *flags))
    for result in results:
        # The same sums of bf16 products on every layout; gradient norms add up in another order.
        np.testing.assert_allclose(result, expected, rtol=2e-3, atol=2e-3)


def test_noop_layers_pass_their_input_through(dist_run):
    flags = ["--noop-layers", "0,5"]
    expected = reference(dist_run, "llama", flags)
    assert not np.allclose(expected, reference(dist_run, "llama"), atol=1e-4)
    results = dist_run(
        train_worker, ranks=4, timeout=200.0, style="llama", flags=pp(4, *CHUNKS2, *flags)
    )
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=2e-6, atol=2e-6)


def test_stages_without_layers_hand_activations_on(dist_run):
    expected = reference(dist_run, "gpt2", ["--num-layers", "3"])
    flags = pp(4, "--num-layers", "3", "--standalone-embedding-stage")
    results = dist_run(train_worker, ranks=4, timeout=200.0, style="gpt2", flags=flags)
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=2e-6, atol=2e-6)


# --- initial weights


def initial_worker(style, flags):
    config = runs.start(style, flags)
    return runs.weights(build_model_chunks(runs.provider, config))


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_initial_weights_do_not_depend_on_the_stages(dist_run, style):
    (whole,) = {
        tuple(weights): weights
        for weights in dist_run(initial_worker, ranks=4, style=style, flags=[])
    }.values()
    for flags in (pp(4), pp(2, *CHUNKS2)):
        seen = set()
        for weights in dist_run(initial_worker, ranks=4, style=style, flags=flags):
            for name, (values, is_copy) in weights.items():
                source = "language_model.embedding.word_embeddings.weight" if is_copy else name
                np.testing.assert_array_equal(values, whole[source][0], err_msg=name)
                seen.add(source)
        assert seen == set(whole)


def apart_worker():
    config = runs.start("llama", pp(2, "--use-cpu-initialization"))
    mine = runs.weights(build_model_chunks(runs.provider, config))
    seed_initialization(77 + 100 * parallel_state.get_pipeline_model_parallel_rank())
    again = runs.weights(build_model_chunks(runs.provider, config))
    return {name: bool((mine[name][0] == again[name][0]).all()) for name in mine}


def test_cpu_initialization_seeds_every_stage_apart(dist_run):
    results = dist_run(apart_worker, ranks=2)
    assert all(all(result.values()) for result in results)


def tied_worker(flags):
    config = runs.start("gpt2", flags)
    model = get_model(runs.provider, config)
    names = [name for chunk in model for name in chunk.module.shared_weight_name_list]
    tables = [
        chunk.module.shared_embedding_or_output_weight()
        for chunk in model
        if chunk.module.pre_process or chunk.module.post_process
    ]
    return names, [memory.as_numpy(table).copy() for table in tables]


def test_a_tied_head_starts_as_a_copy_of_the_embedding(dist_run):
    first, last = dist_run(tied_worker, ranks=2, flags=pp(2, *CHUNKS2))
    assert first[0] == [] and last[0] == ["language_model.output_layer.weight"]
    np.testing.assert_array_equal(first[1][0], last[1][0])
    assert np.abs(first[1][0]).max() > 0


def untied_one_stage_worker():
    runs.start("gpt2", [])
    with pytest.raises(ValueError, match="with one pipeline stage"):
        runs.provider(True, False)


def wrong_stages_worker():
    config = runs.start("gpt2", [])
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(pipeline_model_parallel_size=2)
    with pytest.raises(ValueError, match="groups were made for 2 stages"):
        plan_of_this_chunk(config.model_config)


def eod_without_tokens_worker():
    config = runs.start("llama", pp(2))
    is_first = parallel_state.is_pipeline_first_stage()
    model = GPTModel(config.model_config, pre_process=is_first, post_process=not is_first, eod=0)
    with pytest.raises(ValueError, match="this pipeline stage was given none"):
        model(None, None, None)


@pytest.mark.parametrize(
    "worker", [untied_one_stage_worker, wrong_stages_worker, eod_without_tokens_worker]
)
def test_models_that_do_not_fit_the_groups_are_refused(dist_run, worker):
    dist_run(worker, ranks=2)


# --- evaluation


def evaluation_worker(flags):
    config = runs.start("llama", flags)
    model = get_model(runs.provider, config)
    for chunk in model:
        chunk.module.set_train(False)
    microbatches = config.global_batch_size(4) // parallel_state.get_data_parallel_world_size()
    reports = get_forward_backward_func()(
        forward_step_func=default_forward_step(),
        data_iterator=runs.micro_batches(),
        model=model,
        num_microbatches=microbatches,
        forward_only=True,
    )
    grads = [np.abs(memory.as_numpy(p.main_grad)).max() for c in model for _, p in _named(c)]
    return len(reports), mean_losses(reports), float(max(grads))


def _named(chunk):
    return named_parameters(chunk.module)


@pytest.mark.parametrize("flags", [pp(4), pp(2, *CHUNKS2)], ids=["pp4", "pp2-vpp2"])
def test_evaluation_works_with_every_schedule(dist_run, flags):
    expected = dist_run(evaluation_worker, ranks=4, flags=[])[0][1]
    results = dist_run(evaluation_worker, ranks=4, flags=flags)
    for rank, (reports, losses, largest_grad) in enumerate(results):
        is_last = rank >= (3 if flags == pp(4) else 2)
        assert reports == ((8 if flags == pp(4) else 4) if is_last else 0)
        assert losses == pytest.approx(expected, abs=2e-6)
        assert largest_grad == 0.0


# --- lengths that change


def lengths_worker(flags, variable, length_of_odd=8):
    config = runs.start("llama", [*flags, "--train-iters", "1"])
    model_config = config.model_config
    if variable:
        parallel = dataclasses.replace(model_config.parallel_config, variable_seq_lengths=True)
        model_config = dataclasses.replace(model_config, parallel_config=parallel)
    chunks = model_config.parallel_config.virtual_pipeline_model_parallel_size
    parallel_state.set_virtual_pipeline_model_parallel_world_size(chunks)
    model = _chunks(model_config, chunks or 1)
    for chunk in model:
        _watch_gradients(chunk)
    reports = get_forward_backward_func()(
        forward_step_func=default_forward_step(),
        data_iterator=runs.micro_batches(lambda index: length_of_odd if index % 2 else runs.SEQ),
        model=model,
        num_microbatches=4,
    )
    norms = {name: float((p.total**2).sum()) for c in model for name, p in named_parameters(c)}
    return [report["lm loss"][0] for report in reports], norms


def _chunks(model_config, count=1):
    chunks = []
    for rank in range(count):
        if count > 1:
            parallel_state.set_virtual_pipeline_model_parallel_rank(rank)
        is_first, is_last = (
            parallel_state.is_pipeline_first_stage(),
            parallel_state.is_pipeline_last_stage(),
        )
        chunks.append(GPTModel(model_config, pre_process=is_first, post_process=is_last))
    return chunks


def _watch_gradients(chunk):
    def add(param, grad):
        param.total = param.total + memory.as_numpy(memory.contiguous(grad))

    for _, param in named_parameters(chunk):
        param.total = np.zeros(param.shape, np.float32)
        autograd.take_gradients(param, partial(add, param))


@pytest.mark.parametrize("flags", [pp(2), pp(2, *CHUNKS2)], ids=["pp2", "pp2-vpp2"])
def test_sequence_lengths_may_change_between_microbatches(dist_run, flags):
    losses, norms = dist_run(lengths_worker, ranks=1, flags=[], variable=False)[0]
    first, last = dist_run(lengths_worker, ranks=2, flags=flags, variable=True)
    assert first[0] == [] and last[0] == pytest.approx(losses, rel=2e-6)
    assert {**first[1], **last[1]} == pytest.approx(norms, rel=1e-4)


def wrong_length_worker():
    """The first stage notices; the other would wait for ever, so it does not start."""
    runs.start("llama", pp(2))
    if parallel_state.get_pipeline_model_parallel_rank() == 0:
        with pytest.raises(ValueError, match="was agreed; check seq_length"):
            get_forward_backward_func()(
                forward_step_func=default_forward_step(),
                data_iterator=runs.micro_batches(lambda index: 8),
                model=_chunks(runs.get_all_config().model_config),
                num_microbatches=1,
            )


def test_another_length_than_agreed_is_refused(dist_run):
    dist_run(wrong_length_worker, ranks=2)


# --- memory


class _Tracked(autograd.Function):
    """y = x, saving an array whose life is watched."""

    @staticmethod
    def forward(ctx, x, weight, alive):
        ctx.kept = np.zeros(16, np.float32)
        alive.add(id(ctx.kept))
        weakref.finalize(_owner(ctx), alive.discard, id(ctx.kept))
        return x * 1.0

    @staticmethod
    def backward(ctx, grad):
        return grad, memory.zeros((1,)), None


class _Life:
    pass


def _owner(ctx):
    ctx.life = _Life()
    return ctx.life


class TrackedChunk(Cell):
    """A chunk that counts its graphs and its outputs that are still alive."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = create_parameter((1,), lambda shape: np.ones(shape, np.float32))
        self.book = SimpleNamespace(graphs=set(), outputs=set(), input=None, log=[])

    def set_input_tensor(self, tensor):
        self.book.input = tensor

    def construct(self, tokens):
        book = self.book
        x = book.input if book.input is not None else tokens * self.weight
        y = _Tracked.apply(x, self.weight, book.graphs)
        book.log.append((len(book.graphs), len(book.outputs)))
        book.outputs.add(id(y))
        weakref.finalize(y, book.outputs.discard, id(y))
        return y


def memory_worker(chunks, microbatches):
    comm.init_process_group()
    parallel_state.initialize_model_parallel(
        pipeline_model_parallel_size=comm.get_world_size(),
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
    )
    parallel = ModelParallelConfig(
        pipeline_model_parallel_size=comm.get_world_size(),
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
    )
    config = SimpleNamespace(
        parallel_config=parallel,
        residual_dtype="float32",
        seq_length=4,
        hidden_size=8,
        dataset_config=SimpleNamespace(batch_size=2),
    )
    model = [TrackedChunk(config) for _ in range(chunks)]

    def forward_step(iterator, chunk):
        output = chunk(memory.from_numpy(np.full((4, 2, 8), next(iterator), np.float32)))
        return output, lambda y: (y.mean(), 1.0, {"mean": (float(y.mean()), 1.0)})

    records = []
    reports = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(range(microbatches)),
        model=model,
        num_microbatches=microbatches,
        recorder=records.append,
    )
    logs = [entry for chunk in model for entry in chunk.book.log]
    return {
        "graphs": max(graphs for graphs, _ in logs),
        "outputs": max(outputs for _, outputs in logs),
        "left": sum(len(chunk.book.graphs) + len(chunk.book.outputs) for chunk in model),
        "recorded": records[0].peak_in_flight,
        "reports": reports,
    }


def test_1f1b_keeps_as_many_microbatches_as_there_are_stages_behind(dist_run):
    results = dist_run(memory_worker, ranks=4, chunks=1, microbatches=9)
    for stage, result in enumerate(results):
        assert result["graphs"] == result["recorded"] == 4 - stage
        assert result["left"] == 0
        # Only tensors that are on their way exist besides the one being computed.
        assert result["outputs"] <= 2
    assert [report["mean"][0] for report in results[3]["reports"]] == list(range(9))


def test_interleaved_stages_release_what_they_have_sent(dist_run):
    results = dist_run(memory_worker, ranks=2, chunks=2, microbatches=6)
    # warm-up of 2 (2 - stage - 1) + (2 - 1) 2 forwards, and the one of the steady state
    assert [result["recorded"] for result in results] == [5, 3]
    assert all(result["left"] == 0 and result["outputs"] <= 2 for result in results)


def interleaving_refusal_worker():
    comm.init_process_group()
    parallel_state.initialize_model_parallel(
        pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2
    )
    config = SimpleNamespace(parallel_config=ModelParallelConfig())
    with pytest.raises(ValueError, match="leave a last group of 1"):
        get_forward_backward_func()(
            forward_step_func=None,
            data_iterator=iter(()),
            model=[SimpleNamespace(config=config)] * 2,
            num_microbatches=5,
        )


def test_microbatches_that_cannot_take_turns_are_refused(dist_run):
    dist_run(interleaving_refusal_worker, ranks=2)


# --- groups


def groups_worker():
    """Ranks that are in different numbers of groups must still agree about the next one."""
    comm.new_group([0, 3])
    group = comm.new_group([0, 1, 3])
    if group.rank < 0:
        return None
    value = memory.from_numpy(np.ones(1, np.float32))
    comm.all_reduce(value, group=group)
    return float(memory.as_numpy(value)[0])


def test_groups_can_follow_groups_of_some_of_their_ranks(dist_run):
    assert dist_run(groups_worker, ranks=4, timeout=30.0) == [3.0, 3.0, None, 3.0]
