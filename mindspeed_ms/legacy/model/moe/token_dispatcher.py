# SPDX-License-Identifier: Apache-2.0
"""How tokens reach their experts and come back.

Legend: T tokens of a rank, K choices per token, H hidden size, E experts, N rows (a row is a token
on its way to one expert), M rows at this rank's experts. P expert parallel ranks share the experts,
Q expert tensor parallel ranks share each expert's matrices.

A dispatcher keeps nothing between calls: ``token_permutation`` returns what the way back needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from mindspore import Tensor

from mindspeed_ms import old_names, ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.legacy.model.moe.dispatch_plan import (
    ExchangePlan,
    SortedRows,
    padding_of,
    plan_exchange,
    sort_rows,
)
from mindspeed_ms.legacy.model.moe.exchange import all_to_all
from mindspeed_ms.legacy.model.moe.router import Routing

Meanwhile = Callable[[], None] | None
"""Work to do while rows travel."""


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What the way back needs to know of the way there."""

    probs: Tensor
    """Weight of each choice [T, K]; with all-gather of the choices of all ranks."""

    rows: SortedRows
    """Order of the rows on this rank before they left."""

    exchange: ExchangePlan | None = None
    """Where they went."""


class TokenDispatcher(Protocol):
    """Moves tokens to experts and back."""

    def token_permutation(
        self, hidden: Tensor, routing: Routing, meanwhile: Meanwhile = None
    ) -> tuple[Tensor, tuple[int, ...], Dispatched]:
        """[T, H] -> (rows [M, H] sorted by local expert, rows per local expert, the way)."""

    def token_unpermutation(self, rows: Tensor, way: Dispatched) -> Tensor:
        """Rows [M, H] that experts have computed -> [T, H], weighted and summed per token."""


def take_rows(x: Tensor, index: np.ndarray) -> Tensor:
    """``x[index]``, zeros for -1; differentiable. Shapes: x [n, H], index int32 [m] -> [m, H]."""
    return ops.embedding(x, memory.from_numpy(np.ascontiguousarray(index, np.int32)))


class AlltoAllTokenDispatcher:
    """Sends every row to the rank of its expert, and back.

    Args:
        num_local_experts: experts on this rank.
        local_expert_indices: their global numbers.
        config: model configuration.
        groups: of this rank, default the current ones.

    Parallelism: rows travel within the expert parallel group; expert tensor parallel ranks gather
        what each of them got, and sum their parts of the results. Row counts are exchanged first.

    Source: Megatron-LM ``MoEAlltoAllTokenDispatcher`` (order of the exchanges).
    """

    def __init__(
        self,
        num_local_experts: int,
        local_expert_indices: Sequence[int],
        config: TransformerConfig,
        groups: ProcessGroups | None = None,
    ) -> None:
        groups = groups or ProcessGroups.current()
        self.num_local_experts = num_local_experts
        self.local_expert_indices = tuple(local_expert_indices)
        self.num_experts = config.moe_config.num_experts
        self.point_to_point = config.moe_config.use_self_defined_alltoall
        self.expert_group = groups.expert
        self.tensor_group = groups.expert_tensor
        self.joint_group = groups.expert_and_tensor

    def token_permutation(
        self, hidden: Tensor, routing: Routing, meanwhile: Meanwhile = None
    ) -> tuple[Tensor, tuple[int, ...], Dispatched]:
        """See ``TokenDispatcher``; experts on other ranks get their rows there."""
        rows = sort_rows(routing.experts, self.num_experts, routing.capacity)
        plan = self._plan(rows.counts)
        way = Dispatched(routing.probs, rows, plan)
        x = take_rows(hidden, rows.tokens)  # [N, H]
        x = all_to_all(
            x,
            plan.input_splits,
            plan.output_splits,
            self.expert_group,
            meanwhile=meanwhile,
            point_to_point=self.point_to_point,
        )
        if self.tensor_group.size > 1:
            x = take_rows(x, padding_of(plan.received_rows, plan.padded_rows))
            x = mappings.gather_from_sequence_parallel_region(x, group=self.tensor_group)
        if not plan.is_sorted:
            x = take_rows(x, plan.order)
        return x, plan.counts, way

    def token_unpermutation(self, rows: Tensor, way: Dispatched) -> Tensor:
        """See ``TokenDispatcher``."""
        plan = way.exchange
        assert plan is not None, "rows that were dispatched have a plan"
        if not plan.is_sorted:
            rows = take_rows(rows, plan.back)  # [Q * padded, H]
        if self.tensor_group.size > 1:
            rows = mappings.reduce_scatter_to_sequence_parallel_region(rows, self.tensor_group)
            rows = take_rows(rows, np.arange(plan.received_rows, dtype=np.int32))
        rows = all_to_all(
            rows,
            plan.output_splits,
            plan.input_splits,
            self.expert_group,
            point_to_point=self.point_to_point,
        )
        return ops.combine_rows(rows, way.probs, memory.from_numpy(way.rows.places))

    def _plan(self, counts: np.ndarray) -> ExchangePlan:
        """Tell all ranks how many rows come."""
        group = self.joint_group
        shape = (self.expert_group.size, self.tensor_group.size, self.num_experts)
        everywhere = counts
        if group.size > 1:
            gathered = memory.from_numpy(np.empty((group.size, self.num_experts), np.int64))
            comm.all_gather_into_tensor(gathered, memory.from_numpy(counts), group=group)
            everywhere = memory.as_numpy(gathered)
        return plan_exchange(
            everywhere.reshape(shape), self.expert_group.rank, self.tensor_group.rank
        )


class MoEAllGatherTokenDispatcher:
    """Gathers the tokens of all ranks everywhere; each rank serves the choices of its experts.

    Args:
        num_local_experts: experts on this rank.
        local_expert_indices: their global numbers, consecutive.
        config: model configuration.
        groups: of this rank, default the current ones.

    Parallelism: tokens, weights and choices are gathered over expert x expert tensor parallel
        ranks, and the results are summed and scattered over them. More bytes than the all-to-all,
        but messages of known size.

    Source: Megatron-LM ``MoEAllGatherTokenDispatcher`` (order of the exchanges).
    """

    def __init__(
        self,
        num_local_experts: int,
        local_expert_indices: Sequence[int],
        config: TransformerConfig,
        groups: ProcessGroups | None = None,
    ) -> None:
        groups = groups or ProcessGroups.current()
        self.num_local_experts = num_local_experts
        self.local_expert_indices = tuple(local_expert_indices)
        self.group = groups.expert_and_tensor

    def token_permutation(
        self, hidden: Tensor, routing: Routing, meanwhile: Meanwhile = None
    ) -> tuple[Tensor, tuple[int, ...], Dispatched]:
        """See ``TokenDispatcher``; every expert tensor parallel rank gets all rows of its expert.

        Rows are not padded: their number does not decide what is sent.
        """
        if meanwhile is not None:
            meanwhile()
        group, experts = self.group, routing.experts
        hidden = mappings.gather_from_sequence_parallel_region(hidden, group=group)
        probs = mappings.gather_from_sequence_parallel_region(routing.probs, group=group)
        if group.size > 1:
            everywhere = memory.from_numpy(
                np.empty((group.size * len(experts), experts.shape[1]), np.int32)
            )
            mine = memory.from_numpy(np.ascontiguousarray(experts))
            comm.all_gather_into_tensor(everywhere, mine, group=group)
            experts = memory.as_numpy(everywhere)
        first = self.local_expert_indices[0]
        is_local = (experts >= first) & (experts < first + self.num_local_experts)
        rows = sort_rows(np.where(is_local, experts - first, -1), self.num_local_experts)
        counts = tuple(int(count) for count in rows.counts)
        return take_rows(hidden, rows.tokens), counts, Dispatched(probs, rows)

    def token_unpermutation(self, rows: Tensor, way: Dispatched) -> Tensor:
        """See ``TokenDispatcher``."""
        partial = ops.combine_rows(rows, way.probs, memory.from_numpy(way.rows.places))
        return mappings.reduce_scatter_to_sequence_parallel_region(partial, self.group)


def get_token_dispatcher(
    num_local_experts: int,
    local_expert_indices: Sequence[int],
    config: TransformerConfig,
    groups: ProcessGroups | None = None,
) -> TokenDispatcher:
    """The dispatcher that a configuration names.

    ``alltoall_seq`` and ``flex`` are ``alltoall``: they differ in how Megatron exchanges, not in
    what arrives.
    """
    is_gather = config.moe_config.moe_token_dispatcher_type == "allgather"
    kind = MoEAllGatherTokenDispatcher if is_gather else AlltoAllTokenDispatcher
    return kind(num_local_experts, local_expert_indices, config, groups)


__getattr__ = old_names.of(__name__)
