# SPDX-License-Identifier: Apache-2.0
"""A frozen teacher in memory, whose divergence is the loss of a student.

Legend: s places of a sequence on this rank, b sequences of a micro-batch, v vocabulary, p tensor
parallel ranks, T temperature.

Source: MindSpeed ``core/distill`` (the loss, its reductions, what is logged).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group, ReduceOp
from mindspeed_ms.core import run_state
from mindspeed_ms.core.run_state import RunState


@dataclass(kw_only=True, slots=True)
class Teacher:
    """On the ranks of the last pipeline stage, which hold all of its layers."""

    model: Cell
    """(tokens, position_ids, attention_mask) -> logits [b, s, v/p]."""
    state: RunState
    """Its groups, without a pipeline, and its random streams."""
    temperature: float = 1.0
    weight: float = 1.0
    """Of the divergence."""
    labels_weight: float = 0.0
    """Of the labels' loss."""
    sums: bool = False
    """The divergence of a micro-batch is the sum over its tokens instead of the mean."""
    _logits: Tensor | None = None
    _noted: tuple[Tensor, Tensor] | None = None

    def look(self, tokens: Tensor | None, position_ids: Tensor | None, mask: Any) -> None:
        """Compute what the teacher expects of the micro-batch that the student is to see.

        Raises:
            ValueError: this stage was given no tokens.
        """
        if tokens is None:
            raise ValueError(
                "a teacher sees the tokens on the last pipeline stage, which was given none; let "
                "get_batch_func return tokens on every stage"
            )
        with run_state.activated(self.state), autograd.no_grad():
            self._logits = self.model(tokens, position_ids, mask)

    def losses(self, logits: Tensor, group: Group) -> Tensor:
        """Divergence of the student's logits [s, b, v/p] from the teacher's, fp32 [s, b].

        Parallelism: collective over ``group``, the tensor parallel ranks.
        """
        assert self._logits is not None, "asked after look"
        expected, self._logits = self._logits, None
        expected = memory.contiguous(expected.swapaxes(0, 1))
        return divergence(logits, expected, self.temperature, group)

    def note(self, of_labels: Tensor, of_teacher: Tensor) -> None:
        """Keep both losses of a micro-batch for its report."""
        self._noted = of_labels, of_teacher

    def told(self, report: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
        """A micro-batch's report, with the labels' loss under its name and the teacher's beside."""
        if self._noted is None:  # of an evaluation
            return dict(report)
        values = [float(memory.as_numpy(autograd.detach(one)).item()) for one in self._noted]
        self._noted = None
        (of_labels, of_teacher), count = values, report.get("lm loss", (0.0, 1.0))[1]
        told = {"lm loss": (of_labels * count, count)}
        told["kl loss"] = (of_teacher, 1.0) if self.sums else (of_teacher * count, count)
        return {**report, **told}


class _Divergence(autograd.Function):
    """T² sum q (log q - log p), with p and q the softmax of student's and teacher's logits / T."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, expected: Tensor, temperature: float, group: Group
    ) -> Tensor:
        logits = memory.contiguous(logits)
        tops = ops.ce_max(logits), ops.ce_max(expected)
        for top in tops:
            comm.all_reduce(top, op=ReduceOp.MAX, group=group)
        own, theirs, both = ops.kl_parts(logits, expected, *tops, temperature)
        for part in (own, theirs, both):
            comm.all_reduce(part, group=group)
        ctx.save_for_backward(logits, expected, *tops, own, theirs)
        ctx.temperature = temperature
        return ops.kl_loss(own, theirs, both, temperature)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, expected, top, expected_top, own, theirs = ctx.saved_tensors
        dloss = memory.contiguous(grad)
        tops, sums = (top, expected_top), (own, theirs)
        found = ops.kl_backward(logits, expected, tops, sums, dloss, ctx.temperature)
        return found, None, None, None


def divergence(logits: Tensor, expected: Tensor, temperature: float, group: Group) -> Tensor:
    """Kullback-Leibler divergence of a student from a teacher, times temperature², fp32 [...].

    Args:
        logits: of the student, [..., v/p].
        expected: of the teacher, of the same shape; no gradient.
        temperature: both are divided by it.
        group: ranks that the vocabulary is split over.

    Raises:
        ValueError: shapes that differ.

    Parallelism: collective over ``group``.

    Source: Hinton et al., 2015, section 2.
    """
    if logits.shape != expected.shape:
        raise ValueError(
            f"student's logits are {list(logits.shape)} and the teacher's {list(expected.shape)}; "
            "both need the same vocabulary"
        )
    return _Divergence.apply(logits, expected, temperature, group)
