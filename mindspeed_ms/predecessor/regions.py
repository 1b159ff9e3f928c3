# SPDX-License-Identifier: Apache-2.0
"""Borders of tensor parallel regions as cells. Legend: s, b, h, n tokens, p tensor parallel ranks.

Each is one of the crossings of ``core.tensor_parallel.mappings``, backward included; a group of one
rank leaves its input as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms.backend.base import Group
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.legacy.model.moe import exchange
from mindspeed_ms.predecessor.context_parallel import exchanged_dims


class CopyToModelParallelRegion(Cell):
    """The input; backward sums over the ranks."""

    def construct(self, input_: Tensor) -> Tensor:
        """Any shape -> the same."""
        return mappings.copy_to_tensor_model_parallel_region(input_)


class ReduceFromModelParallelRegion(Cell):
    """The sum over the ranks; backward hands the gradient on."""

    def construct(self, input_: Tensor) -> Tensor:
        """Any shape -> the same."""
        return mappings.reduce_from_tensor_model_parallel_region(input_)


class ScatterToModelParallelRegion(Cell):
    """This rank's part of the last dimension; backward joins the parts."""

    def construct(self, input_: Tensor) -> Tensor:
        """[..., h] -> [..., h/p]."""
        return mappings.scatter_to_tensor_model_parallel_region(input_)


class GatherFromModelParallelRegion(Cell):
    """The ranks' parts joined along the last dimension; backward keeps the own one."""

    def construct(self, input_: Tensor) -> Tensor:
        """[..., h/p] -> [..., h]."""
        return mappings.gather_from_tensor_model_parallel_region(input_)


class _SequenceRegion(Cell):
    """A crossing along the sequence.

    Args:
        need_to_swapaxes: the sequence is the second dimension, [b, s, h].
    """

    def __init__(self, need_to_swapaxes: bool = False) -> None:
        super().__init__()
        self.need_to_swapaxes = need_to_swapaxes

    def construct(self, input_: Tensor) -> Tensor:
        """[s, b, h] with another s, or [b, s, h]."""
        if not self.need_to_swapaxes:
            return self._cross(input_)
        return self._cross(input_.swapaxes(0, 1).contiguous()).swapaxes(0, 1).contiguous()

    def _cross(self, tensor: Tensor) -> Tensor:
        raise NotImplementedError


class ScatterToSequenceParallelRegion(_SequenceRegion):
    """This rank's part of the sequence; backward joins the parts. s -> s/p."""

    def _cross(self, tensor: Tensor) -> Tensor:
        return mappings.scatter_to_sequence_parallel_region(tensor)


class ReduceScatterToSequenceParallelRegion(_SequenceRegion):
    """This rank's part of the sum over the ranks; backward joins the parts. s -> s/p."""

    def _cross(self, tensor: Tensor) -> Tensor:
        return mappings.reduce_scatter_to_sequence_parallel_region(tensor)


class GatherFromSequenceParallelRegion(_SequenceRegion):
    """The ranks' parts of the sequence joined. s/p -> s.

    Args:
        need_to_swapaxes: the sequence is the second dimension.
        tensor_parallel_output_grad: backward sums over the ranks, since a tensor parallel layer
            follows; False: it keeps the own part.
    """

    def __init__(
        self, need_to_swapaxes: bool = False, tensor_parallel_output_grad: bool = True
    ) -> None:
        super().__init__(need_to_swapaxes)
        self.tensor_parallel_output_grad = tensor_parallel_output_grad

    def _cross(self, tensor: Tensor) -> Tensor:
        return mappings.gather_from_sequence_parallel_region(
            tensor, self.tensor_parallel_output_grad
        )


class AllToAll(Cell):
    """Blocks of rows to every rank of a group, and theirs to this one; backward the other way.

    Args:
        group: default the tensor parallel group.
        output_split_sizes: rows from each rank; None: as many from each.
        input_split_sizes: rows for each rank; None: as many for each.
    """

    def __init__(
        self,
        group: Group | None = None,
        output_split_sizes: Sequence[int] | None = None,
        input_split_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.group = group or parallel_state.get_tensor_model_parallel_group()
        self.received, self.sent = output_split_sizes, input_split_sizes

    def construct(self, input_: Tensor) -> Tensor:
        """[n, ...] -> [rows received, ...].

        Raises:
            ValueError: rows that do not divide, or counts that are not one per rank.
        """
        ranks, rows = self.group.size, input_.shape[0]
        even = (rows // ranks,) * ranks
        sent = even if self.sent is None else tuple(int(count) for count in self.sent)
        received = even if self.received is None else tuple(int(one) for one in self.received)
        if len(sent) != ranks or len(received) != ranks or sum(sent) != rows:
            raise ValueError(
                f"{rows} rows go to {ranks} ranks as {sent} and come as {received}; give one count "
                "per rank, whose sum for those that go is the number of rows"
            )
        flat = input_.reshape((rows, -1))
        moved = exchange.all_to_all(flat, sent, received, self.group)
        return moved.reshape((sum(received), *input_.shape[1:]))


def all_to_all_sp2hp(input_: Tensor) -> Tensor:
    """[n/p, ..., h], a part of the tokens -> [n, h/p], a part of the channels.

    Source: behaviour of Megatron-LM's function of that name.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    return exchanged_dims(input_.reshape((-1, input_.shape[-1])), group, scatter=1, gather=0)


def all_to_all_hp2sp(input_: Tensor) -> Tensor:
    """[n, ..., h/p], a part of the channels -> [n/p, h], a part of the tokens.

    Source: behaviour of Megatron-LM's function of that name.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    return exchanged_dims(input_.reshape((-1, input_.shape[-1])), group, scatter=0, gather=1)


class AllToAllSP2HP(Cell):
    """:func:`all_to_all_sp2hp` as a cell."""

    def construct(self, input_: Tensor) -> Tensor:
        """[n/p, ..., h] -> [n, h/p]."""
        return all_to_all_sp2hp(input_)


class AllToAllHP2SP(Cell):
    """:func:`all_to_all_hp2sp` as a cell."""

    def construct(self, input_: Tensor) -> Tensor:
        """[n, ..., h/p] -> [n/p, h]."""
        return all_to_all_hp2sp(input_)
