# SPDX-License-Identifier: Apache-2.0
"""Plans of pipeline stages: Megatron's order of passes, and no rank ever waits in a circle."""

from collections import defaultdict, deque
from dataclasses import replace

import pytest

from mindspeed_ms.plan.schedule_plan import (
    Backward,
    Exchange,
    Forward,
    Shape,
    compute_order,
    forward_order,
    num_warmup_forwards,
    peak_in_flight,
    plan,
    plans,
)


def text(passes):
    """``F0.1`` is the forward of micro-batch 0 through chunk 1."""
    return " ".join(
        f"{'F' if isinstance(step, Forward) else 'B'}{step.microbatch}.{step.chunk}"
        for step in passes
    )


def test_one_stage_alternates_forward_and_backward():
    assert text(plan(Shape(1, 3), 0)) == "F0.0 B0.0 F1.0 B1.0 F2.0 B2.0"


def test_1f1b_order_of_every_stage():
    shape = Shape(3, 4)
    expected = [
        "F0.0 F1.0 F2.0 B0.0 F3.0 B1.0 B2.0 B3.0",
        "F0.0 F1.0 B0.0 F2.0 B1.0 F3.0 B2.0 B3.0",
        "F0.0 B0.0 F1.0 B1.0 F2.0 B2.0 F3.0 B3.0",
    ]
    assert [text(compute_order(shape, stage)) for stage in range(3)] == expected


def test_fewer_microbatches_than_stages_only_warm_up():
    assert text(compute_order(Shape(4, 2), 0)) == "F0.0 F1.0 B0.0 B1.0"


def test_interleaved_order_of_both_stages():
    shape = Shape(2, 4, 2)
    expected = [
        "F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0 B2.1 B3.1 B2.0 B3.0",
        "F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 F2.0 B0.0 F3.0 B1.0 F2.1 B2.1 F3.1 B3.1 B2.0 B3.0",
    ]
    assert [text(compute_order(shape, stage)) for stage in range(2)] == expected


def test_groups_of_microbatches_take_turns_on_the_chunks():
    shape = Shape(2, 7, 2, group_size=4)
    assert forward_order(shape) == [
        *[(m, 0) for m in range(4)],
        *[(m, 1) for m in range(4)],
        *[(m, 0) for m in range(4, 7)],
        *[(m, 1) for m in range(4, 7)],
    ]
    # 2 (stages - stage - 1) + (chunks - 1) group
    assert [num_warmup_forwards(shape, stage) for stage in range(2)] == [6, 4]


def test_forward_only_runs_no_backward():
    for chunks in (1, 2):
        for steps in plans(Shape(2, 4, chunks, forward_only=True)):
            assert not any(isinstance(step, Backward) for step in steps)
            assert sum(isinstance(step, Forward) for step in steps) == 4 * chunks


@pytest.mark.parametrize("stages", [1, 2, 4, 8, 24])
def test_1f1b_keeps_at_most_stages_minus_stage_in_flight(stages):
    for microbatches in (1, stages, 2 * stages + 1):
        for stage, steps in enumerate(plans(Shape(stages, microbatches))):
            assert peak_in_flight(steps) == min(stages - stage, microbatches)


def test_a_steady_stage_has_no_exchange_without_work():
    exchanges = [s for s in plan(Shape(4, 8), 1) if isinstance(s, Exchange)]
    assert all(exchange.sends or exchange.receives for exchange in exchanges)
    assert all(len(exchange.sends) <= 1 for exchange in exchanges)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "at least 1"),
        ((2, 0), "at least 1"),
        ((1, 4, 2), "need at least 2 pipeline stages"),
        ((4, 8, 2, 3), r"must lie between the pipeline stages \(4\)"),
        ((4, 8, 2, 9), "or a larger global batch"),
        ((4, 2, 2), "must lie between"),
        ((4, 6, 2), "leave a last group of 2"),
        ((4, 11, 2, 8), "leave a last group of 3"),
    ],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Shape(*arguments)


def test_a_stage_outside_the_pipeline_is_refused():
    with pytest.raises(ValueError, match=r"within 0\.\.1"):
        plan(Shape(2, 2), 2)


class Machine:
    """Executes the plans of all ranks, each exchange blocking until all its transfers are done.

    A channel leads from one rank to another; tensors leave it in the order in which they entered.
    No real transport can be stricter, so plans that end here end everywhere.
    """

    def __init__(self, shape, steps):
        self.shape, self.steps = shape, steps
        self.position = [0] * shape.stages
        self.posted = [False] * shape.stages
        self.waiting = [0] * shape.stages
        self.sent = defaultdict(deque)
        self.asked = defaultdict(deque)
        self.held = [set() for _ in range(shape.stages)]
        self.results = [set() for _ in range(shape.stages)]

    def run(self):
        ready = deque(range(self.shape.stages))
        while ready:
            rank = ready.popleft()
            while self.position[rank] < len(self.steps[rank]):
                step = self.steps[rank][self.position[rank]]
                if isinstance(step, Exchange):
                    if not self.posted[rank]:
                        self.posted[rank] = True
                        ready.extend(self.post(rank, step))
                    if self.waiting[rank]:
                        break
                    self.posted[rank] = False
                else:
                    self.compute(rank, step)
                self.position[rank] += 1
        done = [p == len(steps) for p, steps in zip(self.position, self.steps, strict=True)]
        assert all(done), f"{self.shape}: ranks {[r for r, d in enumerate(done) if not d]} wait"
        assert not any(self.held), "something was received and not used"

    def post(self, rank, exchange):
        """Offer the transfers; ranks that can go on."""
        self.waiting[rank] = len(exchange.sends) + len(exchange.receives)
        freed = []
        for transfer in exchange.sends:
            assert transfer.source == rank
            key = ("F" if transfer.kind == "activation" else "B", transfer.source_chunk)
            assert (*key, transfer.microbatch) in self.results[rank], "sent before computed"
            self.sent[rank, transfer.destination].append(transfer)
            freed += self.match(rank, transfer.destination)
        for transfer in exchange.receives:
            assert transfer.destination == rank
            self.asked[transfer.source, rank].append(transfer)
            freed += self.match(transfer.source, rank)
        return freed

    def match(self, source, destination):
        sent, asked = self.sent[source, destination], self.asked[source, destination]
        freed = []
        while sent and asked:
            transfer = sent.popleft()
            assert transfer == asked.popleft(), "tensors arrive in another order than expected"
            key = (transfer.kind, transfer.destination_chunk, transfer.microbatch)
            self.held[destination].add(key)
            for rank in (source, destination):
                self.waiting[rank] -= 1
                if not self.waiting[rank]:
                    freed.append(rank)
        return freed

    def compute(self, rank, step):
        last = self.shape.stages * self.shape.chunks - 1
        position = step.chunk * self.shape.stages + rank
        is_forward = isinstance(step, Forward)
        if position != (0 if is_forward else last):
            kind = "activation" if is_forward else "gradient"
            self.held[rank].remove((kind, step.chunk, step.microbatch))
        name = "F" if is_forward else "B"
        if not is_forward:
            assert ("F", step.chunk, step.microbatch) in self.results[rank]
        key = (name, step.chunk, step.microbatch)
        assert key not in self.results[rank]
        self.results[rank].add(key)


def execute(shape):
    machine = Machine(shape, plans(shape))
    machine.run()
    passes = 1 if shape.forward_only else 2
    for results in machine.results:
        assert len(results) == passes * shape.microbatches * shape.chunks


def counts(stages):
    return sorted({1, 2, max(1, stages - 1), stages, stages + 1, 2 * stages + 3})


def test_no_plan_of_1_to_64_stages_deadlocks():
    for stages in range(1, 65):
        for microbatches in counts(stages) if stages <= 8 else (max(2, stages // 4),):
            execute(Shape(stages, microbatches))
            if stages <= 8:
                execute(Shape(stages, microbatches, forward_only=True))


def interleaved_shapes(stages, chunks):
    yield Shape(stages, stages, chunks)
    if stages <= 5:
        yield Shape(stages, 2 * stages, chunks)
        yield Shape(stages, 2 * stages + 1, chunks, group_size=stages + 1)
        yield Shape(stages, 3 * stages + 1, chunks, group_size=2 * stages)
        yield Shape(stages, 2 * stages + 1, chunks, group_size=2 * stages + 1)
        yield Shape(stages, 2 * stages, chunks, forward_only=True)


def test_no_interleaved_plan_of_2_to_64_stages_deadlocks():
    for stages in range(2, 9):
        for chunks in range(2, 9):
            for shape in interleaved_shapes(stages, chunks):
                execute(shape)
    for stages, chunks in ((16, 8), (24, 2), (32, 3), (64, 2)):
        execute(Shape(stages, stages, chunks))


@pytest.mark.slow
def test_no_interleaved_plan_of_any_size_deadlocks():
    for stages in (*range(2, 25), *range(32, 65, 8)):
        for chunks in range(2, 9):
            execute(Shape(stages, stages, chunks))
            execute(Shape(stages, 2 * stages, chunks))
            execute(Shape(stages, 2 * stages + 1, chunks, group_size=stages + 1))


def test_the_machine_notices_a_circle():
    """Two ranks that each want to receive first: the proof above would be void without this."""
    shape = Shape(2, 2)
    broken = [list(steps) for steps in plans(shape)]
    first, second = (next(s for s in steps if isinstance(s, Exchange)) for steps in broken)
    broken[0].insert(0, replace(first, sends=(), receives=second.receives))
    with pytest.raises(AssertionError):
        Machine(shape, [tuple(steps) for steps in broken]).run()
