# SPDX-License-Identifier: Apache-2.0
"""Data parallel training against the same training in one process."""

import numpy as np
import pytest
import tiny_training as tiny

from mindspeed_ms.core import parallel_state

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
# Other orders of fp32 sums over micro-batches and ranks, carried through four AdamW steps.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
TIMEOUT = 120.0


def train_worker(ddp=None, optimizer=None, tensor=1, instances=1, steps=4, **model):
    tiny.start(tensor, instances)
    wrapped, rule = tiny.build(ddp, optimizer, tensor, **model)
    report = tiny.train(wrapped, rule, steps)
    report["params_norm"] = rule.params_norm()
    report["weights"] = tiny.full_weights(wrapped)
    report["rank"] = parallel_state.get_data_parallel_rank()
    return report


@pytest.fixture(scope="module")
def reference():
    """Results of one rank, by the settings that change them."""
    return {}


def _expected(dist_run, reference, **settings):
    key = repr(sorted(settings.items()))
    if key not in reference:
        (reference[key],) = dist_run(train_worker, ranks=1, timeout=TIMEOUT, **settings)
    return reference[key]


def _assert_same(results, expected):
    np.testing.assert_allclose(
        np.mean([result["loss"] for result in results], axis=0), expected["loss"], rtol=1e-5
    )
    for result in results:
        if expected["norm"][0] is not None:
            np.testing.assert_allclose(result["norm"], expected["norm"], rtol=1e-4)
        np.testing.assert_allclose(result["params_norm"], expected["params_norm"], rtol=1e-5)
        assert result["zeros"] == expected["zeros"]
        for name, value in expected["weights"].items():
            np.testing.assert_allclose(result["weights"][name], value, **TOLERANCE, err_msg=name)


OVERLAP = {"overlap_grad_reduce": True, "bucket_size": 300}
DDP = {
    "plain": {},
    "average in collective": {"average_in_collective": True},
    "aligned": {"mem_align_bytes": 512},
    "overlap": OVERLAP,
    "distributed": {"use_distributed_optimizer": True},
    "distributed, overlap": {"use_distributed_optimizer": True, **OVERLAP},
    "distributed, both overlaps": {
        "use_distributed_optimizer": True,
        "overlap_param_gather": True,
        **OVERLAP,
    },
    "z1": {"zero_level": "z1"},
    "z2": {"zero_level": "z2"},
    "z2 overlap": {"zero_level": "z2", **OVERLAP},
    "z3": {"zero_level": "z3"},
    "z3 overlap": {"zero_level": "z3", "average_in_collective": True, **OVERLAP},
}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", DDP)
def test_data_parallel_training_equals_one_rank(dist_run, reference, ranks, name):
    expected = _expected(dist_run, reference)
    results = dist_run(train_worker, ranks=ranks, timeout=TIMEOUT, ddp=DDP[name])
    _assert_same(results, expected)


def other_models_expected(settings):
    """What one rank is run with: everything but the layout."""
    return {name: value for name, value in settings.items() if name not in ("ddp", "instances")}


VARIANTS = {
    "own head": {"tied": False, "ddp": DDP["distributed, both overlaps"]},
    "own head, z3": {"tied": False, "ddp": DDP["z3 overlap"]},
    "not fused": {"fused": False, "ddp": DDP["distributed, overlap"]},
    "not fused, z2": {"fused": False, "ddp": DDP["z2 overlap"]},
    "SGD": {"optimizer": {"optimizer_type": "sgd", "clip_grad": 0.0}, "ddp": DDP["distributed"]},
    "SGD without momentum": {
        "optimizer": {"optimizer_type": "sgd", "sgd_momentum": 0.0},
        "ddp": DDP["plain"],
    },
    "Adam with L2": {"optimizer": {"decoupled_weight_decay": False}, "ddp": DDP["z1"]},
    "two instances": {"instances": 2, "ddp": DDP["distributed, both overlaps"]},
    "two instances, z2": {"instances": 2, "ddp": DDP["z2 overlap"]},
    "two instances, z3": {"instances": 2, "ddp": DDP["z3"]},
    "two instances, average": {
        "instances": 2,
        "ddp": {"average_in_collective": True, "zero_level": "z1"},
    },
    "four instances": {"instances": 4, "ddp": DDP["distributed"]},
    "high bandwidth": {"ddp": {"zero_level": "z1", "pad_buckets_for_high_nccl_busbw": True}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_one_rank(dist_run, reference, name):
    settings = VARIANTS[name]
    expected = _expected(dist_run, reference, **other_models_expected(settings))
    _assert_same(dist_run(train_worker, ranks=4, timeout=TIMEOUT, **settings), expected)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(
    "name", ["plain", "overlap", "distributed, both overlaps", "z2 overlap", "z3 overlap"]
)
def test_with_tensor_parallelism(dist_run, reference, name, sequence_parallel):
    expected = _expected(dist_run, reference)
    results = dist_run(
        train_worker,
        ranks=4,
        timeout=TIMEOUT,
        tensor=2,
        ddp=DDP[name],
        sequence_parallel=sequence_parallel,
    )
    _assert_same(results, expected)


def late_worker():
    """The last two micro-batches both reduce: the second comes too late."""
    tiny.start()
    wrapped, _ = tiny.build(OVERLAP)
    wrapped.zero_grad_buffer()
    tiny.forward_backward(wrapped, 0, 2)
    wrapped.finish_grad_sync()
    wrapped.zero_grad_buffer()
    tiny.forward_backward(wrapped, 1, 2)
    try:
        tiny.forward_backward(wrapped, 2, 2)
    except RuntimeError as error:
        return str(error)
    return None


def test_a_second_last_micro_batch_is_refused(dist_run):
    for message in dist_run(late_worker, ranks=2, timeout=TIMEOUT):
        assert "after its bucket was reduced" in message


def started_worker():
    """How many buckets are being reduced before and after the last micro-batch."""
    tiny.start()
    wrapped, _ = tiny.build(OVERLAP)
    counts = []
    for step in range(2):
        wrapped.zero_grad_buffer()
        with wrapped.no_sync():
            tiny.forward_backward(wrapped, step, 2)
        (buffer,) = wrapped.buffers
        counts.append(sum(b.state.value == "reducing" for b in buffer.grads.buckets))
        tiny.forward_backward(wrapped, step, 2)
        counts.append(sum(b.state.value == "reducing" for b in buffer.grads.buckets))
        wrapped.start_grad_sync()
        counts.append(sum(b.state.value == "reducing" for b in buffer.grads.buckets))
        wrapped.finish_grad_sync()
    return counts, len(buffer.grads.buckets)


def test_only_the_last_micro_batch_starts_reductions(dist_run):
    for counts, buckets in dist_run(started_worker, ranks=2, timeout=TIMEOUT):
        assert buckets > 3
        # The first step learns, the second one overlaps.
        assert counts == [0, 0, buckets, 0, buckets, buckets]


def gathered_worker():
    """Weights between the step and the next forward, without and with completing the gather."""
    tiny.start()
    wrapped, rule = tiny.build(DDP["distributed, both overlaps"], tied=False)
    tiny.train(wrapped, rule, steps=1)
    before = {name: param.asnumpy().copy() for name, param in wrapped.module.parameters_and_names()}
    wrapped.finish_param_sync()
    after = {name: param.asnumpy().copy() for name, param in wrapped.module.parameters_and_names()}
    wrapped.detach()
    for _, param in wrapped.module.parameters_and_names():
        assert param.grad_sink is None and param.before_use is None
    return before, after, wrapped.num_bytes()


def test_gathers_complete_on_request(dist_run):
    results = dist_run(gathered_worker, ranks=2, timeout=TIMEOUT)
    (before, after, _), (_, other, _) = results
    assert any(not np.array_equal(before[name], after[name]) for name in after)
    for name, value in after.items():
        np.testing.assert_array_equal(value, other[name])


def unknown_worker():
    tiny.start()
    wrapped, _ = tiny.build()
    try:
        wrapped.reduced_grads("nothing")
    except KeyError as error:
        return str(error)
    return None


def test_an_unknown_parameter_has_no_gradient(dist_run):
    assert "no trainable parameter" in dist_run(unknown_worker, ranks=1, timeout=TIMEOUT)[0]


def instances_worker(instances):
    try:
        tiny.start(instances=instances)
    except RuntimeError as error:
        return str(error)
    group = parallel_state.get_distributed_optimizer_group()
    replicas = parallel_state.get_distributed_optimizer_replica_group()
    return group.ranks, replicas.ranks


def test_groups_of_optimizer_instances(dist_run):
    results = dist_run(instances_worker, ranks=4, timeout=TIMEOUT, instances=2)
    assert results == [
        ((0, 1), (0, 2)),
        ((0, 1), (1, 3)),
        ((2, 3), (0, 2)),
        ((2, 3), (1, 3)),
    ]
    messages = dist_run(instances_worker, ranks=4, timeout=TIMEOUT, instances=3)
    assert "num_distributed_optimizer_instances is 3; it must divide" in messages[0]
