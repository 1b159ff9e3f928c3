# SPDX-License-Identifier: Apache-2.0
"""Optimizer state of one shard: flat, and cut into segments that one call updates."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core.distributed import OptimizerShard, is_finite
from mindspeed_ms.core.optimizer.halves import LowerHalves
from mindspeed_ms.core.optimizer.muon import Muon
from mindspeed_ms.core.optimizer.narrow import BLOCK, NarrowState
from mindspeed_ms.core.optimizer.param_groups import ParamGroup
from mindspeed_ms.core.optimizer.soap import Soap
from mindspeed_ms.core.optimizer.update_rules import Hyper, UpdateRule
from mindspeed_ms.core.parameter import shard_of

Mark = TypeVar("Mark")

RowFactors = NDArray[np.float32]
"""A factor for every row of a matrix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StatePart:
    """State of consecutive elements of one parameter on this rank, as flat views of its memory."""

    name: str
    param: Parameter
    param_start: int
    """First element, counted in the local (tensor parallel) parameter."""
    main_param: Tensor
    state: Mapping[str, Tensor]
    """By the rule's names, such as ``exp_avg``."""
    whole: Mapping[str, Tensor]
    """States of the whole parameter, over all ranks, in shapes of their own."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """Neighbours with equal learning rate and weight decay; padding between them stays 0."""

    group: ParamGroup
    start: int
    size: int
    main: Tensor
    """Empty where the main parameters are kept in 16 bits."""
    grad: Tensor
    """In the type of the gradients."""
    state: Mapping[str, Tensor]
    """In fp32."""
    narrow: Mapping[str, NarrowState | LowerHalves]
    """Others; ``main``: the main parameters."""
    params: Tensor
    """In the type of the model."""
    is_apart: bool


@dataclass(frozen=True, slots=True)
class _Apart:
    """Parameters of a group whose gradients are clipped apart."""

    group: ParamGroup


class FlatState:
    """fp32 main parameters and moments of a shard.

    Parameters in fp32 are their own main parameters; of others an fp32 copy is updated and rounded
    back after each step.

    Args:
        shard: what this rank updates.
        group_of: parameter group of a parameter.
        rule: the update rule.
        counts: whether norms count a parameter on this rank.
        matrices: the update rule of groups of matrices.
        tp_group_of: ranks that hold the other parts of a matrix.
        narrow: states that are not kept in fp32 -> their type; ``main``: the copies of weights.
        is_apart: of a name: its gradient is clipped by the norm of such gradients alone.
    """

    def __init__(
        self,
        shard: OptimizerShard,
        group_of: Callable[[Parameter], ParamGroup],
        rule: UpdateRule,
        counts: Callable[[Parameter], bool],
        matrices: Muon | Soap | None = None,
        tp_group_of: Callable[[Parameter], Group] = lambda _: comm.world_group(),
        narrow: Mapping[str, mstype.Type] = MappingProxyType({}),
        is_apart: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.shard, self._rule, self._counts = shard, rule, counts
        self._matrices, self._tp_group_of = matrices, tp_group_of
        self._group_of = group_of
        size = memory.num_elements(shard.params)
        self._has_copy = shard.params.dtype != mstype.float32
        self._is_narrow = self._has_copy and "main" in narrow
        self.main = memory.empty((size,)) if self._has_copy else shard.params
        if self._is_narrow:
            self.main = memory.empty((0,))
        pieces, apart = _grouped(shard, size, group_of, is_apart)
        places: dict[int, dict[str, int]] = {}
        sizes: dict[str, int] = {}
        for start, length, group in pieces:
            wide = [name for name in self._state_names(group) if name not in narrow]
            places[start] = {name: sizes.get(name, 0) for name in wide}
            for name in places[start]:
                sizes[name] = sizes.get(name, 0) + length
        self.state = {name: memory.zeros((length,)) for name, length in sizes.items()}
        self._segments = [
            _Segment(
                group=group,
                start=start,
                size=length,
                main=self.main if self._is_narrow else memory.view_of(self.main, start, (length,)),
                grad=_part(shard.grads, start, length),
                state={
                    name: memory.view_of(self.state[name], place, (length,))
                    for name, place in places[start].items()
                },
                narrow={
                    name: _kept(narrow[name], memory.view_of(shard.params, start, (length,)), name)
                    for name in ("main", *self._state_names(group))
                    if name in narrow and (name != "main" or self._is_narrow)
                },
                params=memory.view_of(shard.params, start, (length,)),
                is_apart=start in apart,
            )
            for start, length, group in pieces
        ]
        self.refresh_main()
        self._has_matrices = any(group_of(param).is_matrix for param in shard.bucket)
        if isinstance(matrices, Soap):
            for param, _ in shard.pieces:
                if group_of(param).is_matrix:
                    matrices.hold(param)
        self._note_counted(is_apart)

    def _note_counted(self, is_apart: Callable[[str], bool]) -> None:
        """Which elements norms count here, and which of these apart."""
        pieces = self.shard.pieces
        marks = [(piece.start, piece.size, self._counts(param)) for param, piece in pieces]
        others = [is_apart(piece.name) for _, piece in pieces]
        self._apart = [
            mark[:2] for mark, other in zip(marks, others, strict=True) if mark[2] and other
        ]
        counted = [
            (*mark[:2], mark[2] and not other) for mark, other in zip(marks, others, strict=True)
        ]
        self._counted = [(start, length) for start, length, mark in _merged(counted) if mark]
        self._repeated = [(start, length) for start, length, mark in _merged(marks) if not mark]
        self._exactly_counted = [(start, length) for start, length, mark in marks if mark]

    def refresh_main(self) -> None:
        """Take the main parameters from the model, after weights were loaded into it."""
        if self._is_narrow:
            for segment in self._segments:
                wide = memory.empty((segment.size,))
                ops.copy_cast_(wide, segment.params)
                segment.narrow["main"].forget()
                segment.narrow["main"].narrow(0, wide)
        elif self._has_copy:
            ops.copy_cast_(self.main, self.shard.params)

    def settle(self) -> None:
        """Take over what a checkpoint wrote into the copies of narrow states."""
        for state in self._narrow_states():
            state.settle()

    def _narrow_states(self) -> Iterator[NarrowState | LowerHalves]:
        for segment in self._segments:
            yield from segment.narrow.values()

    def squares(self, of: Tensor) -> tuple[float, float, float]:
        """Sums of squares of a flat tensor: of what norms count here, apart, and of the rest."""
        counted, apart, repeated = (
            sum(ops.l2_norm_squared(_part(of, *item)) for item in items)
            for items in (self._counted, self._apart, self._repeated)
        )
        return counted, apart, repeated

    def squares_by_parameter(self, of: Tensor) -> Iterator[tuple[str, float]]:
        """Name and sum of squares in a flat tensor, of each parameter that norms count here."""
        for param, piece in self.shard.pieces:
            if self._counts(param):
                yield piece.name, ops.l2_norm_squared(_part(of, piece.start, piece.size))

    def num_zeros(self) -> int:
        """Zeros in the gradients that norms count here."""
        return sum(
            ops.count_zeros(_part(self.shard.grads, *item)) for item in self._exactly_counted
        )

    def update(self, step: int, grad_scale: float, apart_scale: float = 1.0) -> None:
        """Apply the gradients, segment by segment, and round to the type of the model.

        Args:
            step: number of the update, from 1.
            grad_scale: factor of the gradients.
            apart_scale: that of those that are clipped apart.
        """
        directions = self.shard.grads
        if self._has_matrices and directions.dtype != mstype.float32:
            directions = memory.empty(directions.shape)
            ops.copy_cast_(directions, self.shard.grads)
        for segment in self._segments:
            group = segment.group
            scale = apart_scale if segment.is_apart else grad_scale
            hyper = Hyper(group.lr, group.weight_decay, step, scale, group.eps_mult)
            if self._matrices is not None and segment.group.is_matrix:
                part = _part(directions, segment.start, segment.size)
                self._matrices.accumulate(segment.main, part, segment.state, hyper)
                continue
            if segment.narrow:
                self._update_narrow(segment, hyper)
                continue
            grad = segment.grad
            if grad.dtype != mstype.float32:
                grad = memory.empty(segment.grad.shape)
                ops.copy_cast_(grad, segment.grad)
            self._rule.apply(segment.main, grad, segment.state, hyper)
        if self._matrices is not None and self._has_matrices:
            self._turn(self._matrices, directions, step)
        if self._has_copy and not self._is_narrow:
            ops.copy_cast_(self.shard.params, self.main)

    def scale_rows(self, factors: Mapping[int, RowFactors]) -> None:
        """Multiply rows of weights, and of their main parameters.

        Args:
            factors: of some parameters, by ``id``: a factor for each row.
        """
        for param, piece in self.shard.pieces:
            rows = factors.get(id(param))
            if rows is None:
                continue
            row = np.arange(piece.param_start, piece.param_start + piece.size)
            own = rows[row // (memory.num_elements(param) // len(rows))]
            kept = [_part(self.shard.params, piece.start, piece.size)]
            if self._has_copy:
                kept.append(self._main_of(piece.start, piece.size))
            for part in kept:
                wide = memory.empty((piece.size,))
                ops.copy_cast_(wide, part)
                scaled = memory.from_numpy(memory.as_numpy(wide) * own)
                ops.copy_cast_(part, scaled)
        if self._is_narrow:
            self.settle()

    def _update_narrow(self, segment: _Segment, hyper: Hyper) -> None:
        """Widen, update and narrow one block after the other."""
        for state in segment.narrow.values():
            state.forget()
        for start in range(0, segment.size, BLOCK):
            size = min(BLOCK, segment.size - start)
            wide = {name: state.wide(start, size) for name, state in segment.narrow.items()}
            kept = {name: _part(tensor, start, size) for name, tensor in segment.state.items()}
            main = wide.get("main")
            if main is None:
                main = _part(segment.main, start, size)
            grad = memory.empty((size,))
            ops.copy_cast_(grad, _part(segment.grad, start, size))
            self._rule.apply(main, grad, {**kept, **wide}, hyper)
            if "main" in wide:
                ops.copy_cast_(_part(segment.params, start, size), main)
            for name, state in segment.narrow.items():
                state.narrow(start, wide[name])

    def _turn(self, matrices: Muon | Soap, directions: Tensor, step: int) -> None:
        """Turn the matrices' directions and take the step along them.

        A rank that owns a part of a matrix computes on the whole of it (of its tensor parallel
        part), so ranks share the work out as they share the state.
        """
        reduction, start = self.shard.reduction, 0
        if reduction.is_sharded and reduction.group.size > 1:
            mine = memory.num_elements(directions)
            whole = memory.empty((reduction.group.size * mine,))
            comm.all_gather_into_tensor(whole, directions, reduction.group)
            directions, start = whole, reduction.shard_rank * mine
        for param, piece in self.shard.pieces:
            group = self._group_of(param)
            if not group.is_matrix:
                continue
            first = start + piece.start - piece.param_start
            matrix = memory.view_of(directions, first, param.shape)
            turned = matrices.turned(param, matrix, self._tp_group_of(param), step)
            matrices.update(
                _part(self.main, piece.start, piece.size),
                _part(turned.view((-1,)), piece.param_start, piece.size),
                self._state_of(piece.start, piece.size),
                group.lr,
                matrices.scale_of(param.shape, shard_of(param)),
            )

    def _state_names(self, group: ParamGroup) -> tuple[str, ...]:
        if self._matrices is not None and group.is_matrix:
            return self._matrices.state_names
        return self._rule.state_names

    def _state_of(self, start: int, size: int) -> dict[str, Tensor]:
        """State of some elements of one segment."""
        segment = self._segment_at(start)
        first = start - segment.start
        wide = {name: _part(tensor, first, size) for name, tensor in segment.state.items()}
        narrow = {
            name: state.view(first, size)
            for name, state in segment.narrow.items()
            if name != "main"
        }
        return {**wide, **narrow}

    def _segment_at(self, start: int) -> _Segment:
        """The one that holds an element; they lie end to end."""
        return self._segments[bisect_right(self._segments, start, key=lambda one: one.start) - 1]

    def _main_of(self, start: int, size: int) -> Tensor:
        """Main parameters of some elements of one segment."""
        if not self._is_narrow:
            return _part(self.main, start, size)
        segment = self._segment_at(start)
        return segment.narrow["main"].view(start - segment.start, size)

    def first_bad(self) -> str | None:
        """Name of the first parameter whose gradient is not finite; None if all are."""
        for _, piece in self.shard.pieces:
            total = ops.l2_norm_squared(_part(self.shard.grads, piece.start, piece.size))
            if total - total != 0.0:
                return piece.name
        return None

    def is_finite(self) -> bool:
        """Whether weights and moments are numbers."""
        # Halves of main parameters are no numbers by themselves; the weights beside them are.
        states = (one for one in self._narrow_states() if isinstance(one, NarrowState))
        narrow = [state.tensor for state in states]
        tensors = [self.shard.params, *self.state.values(), *narrow, *self._whole_states()]
        return all(is_finite(tensor) for tensor in tensors)

    def counted_parts(self) -> Iterator[StatePart]:
        """State of the parameters that norms count here."""
        return (part for part in self.parts() if self._counts(part.param))

    def parts(self) -> Iterator[StatePart]:
        """State by parameter."""
        for param, piece in self.shard.pieces:
            yield StatePart(
                name=piece.name,
                param=param,
                param_start=piece.param_start,
                main_param=self._main_of(piece.start, piece.size),
                state=self._state_of(piece.start, piece.size),
                whole=self._whole_state(param),
            )

    def _whole_state(self, param: Parameter) -> Mapping[str, Tensor]:
        return self._matrices.whole_state(param) if isinstance(self._matrices, Soap) else {}

    def _whole_states(self) -> list[Tensor]:
        found = (self._whole_state(param) for param, _ in self.shard.pieces)
        return [tensor for states in found for tensor in states.values()]

    @property
    def num_bytes(self) -> int:
        """Memory beyond the model's own parameters."""
        narrow = [state.tensor for state in self._narrow_states()]
        tensors = [*self.state.values(), *narrow, *([self.main] if self._has_copy else [])]
        tensors += self._whole_states()
        return sum(memory.num_bytes(tensor) for tensor in tensors)


def _kept(dtype: mstype.Type, params: Tensor, name: str) -> NarrowState | LowerHalves:
    """What keeps a state of some parameters; main parameters in bf16 share the weights' memory."""
    if name == "main" and dtype == mstype.bfloat16:
        return LowerHalves(params)
    return NarrowState(memory.num_elements(params), dtype)


def _part(flat: Tensor, start: int, size: int) -> Tensor:
    return memory.view_of(flat, start, (size,))


def _merged(ranges: list[tuple[int, int, Mark]]) -> list[tuple[int, int, Mark]]:
    """Join neighbours (start, size, mark) with the same mark, and the padding between them."""
    joined: list[tuple[int, int, Mark]] = []
    for start, size, mark in ranges:
        if joined and joined[-1][2] is mark:
            first = joined[-1][0]
            joined[-1] = (first, start + size - first, mark)
        else:
            joined.append((start, size, mark))
    return joined


def _grouped(
    shard: OptimizerShard,
    size: int,
    group_of: Callable[[Parameter], ParamGroup],
    is_apart: Callable[[str], bool],
) -> tuple[list[tuple[int, int, ParamGroup]], set[int]]:
    """(start, size, group) of neighbours that are alike, and the starts of those clipped apart.

    Padding is updated with what lies before it, and stays 0.
    """
    kinds: dict[int, _Apart] = {}

    def kind_of(param: Parameter, name: str) -> ParamGroup | _Apart:
        group = group_of(param)
        return kinds.setdefault(id(group), _Apart(group)) if is_apart(name) else group

    alike = _merged(
        [(piece.start, piece.size, kind_of(param, piece.name)) for param, piece in shard.pieces]
    )
    ends = [*(start for start, _, _ in alike[1:]), size] if alike else []
    pieces = [
        (start, end - start, kind if isinstance(kind, ParamGroup) else kind.group)
        for (start, _, kind), end in zip(alike, ends, strict=True)
    ]
    return pieces, {start for start, _, kind in alike if isinstance(kind, _Apart)}
