# SPDX-License-Identifier: Apache-2.0
"""The predecessor's ``DistributedDataParallel``: a Cell around the engine's buffers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from mindspore import Parameter, Tensor
from mindspore.nn import Cell

from mindspeed_ms.backend import autograd
from mindspeed_ms.config import TrainingConfig
from mindspeed_ms.core.distributed import distributed_data_parallel as engine
from mindspeed_ms.core.distributed import distributed_data_parallel_config as settings
from mindspeed_ms.core.distributed.bucket import Reduction, add_
from mindspeed_ms.core.distributed.param_and_grad_buffer import ParamAndGradBuffer
from mindspeed_ms.core.parameter import named_parameters

_ALIGNED_BYTES = 512


class DistributedDataParallelConfig(settings.DistributedDataParallelConfig):
    """The engine's options, and the predecessor's ``enable_mem_align``.

    Args:
        enable_mem_align: every parameter starts at a multiple of 512 bytes.
        options: the engine's.
    """

    def __init__(self, enable_mem_align: bool = False, **options: Any) -> None:
        if enable_mem_align:
            options.setdefault("mem_align_bytes", _ALIGNED_BYTES)
        super().__init__(**options)


class FlatModel(engine.DistributedDataParallel):
    """The engine's wrapper, whose gradients may be sums over the ranks instead of means.

    Args:
        sums: do not divide by the number of ranks (``loss_reduction: sum``).
        rest: the engine's arguments.
    """

    def __init__(self, *rest: Any, sums: bool = False, **named: Any) -> None:
        self._sums = sums
        super().__init__(*rest, **named)
        for _, parameter in named_parameters(self.module):
            parameter.flat_model = self

    def _reduction(self, is_expert: bool) -> Reduction:
        reduction = super()._reduction(is_expert)
        if not self._sums:
            return reduction
        return replace(reduction, scale=reduction.scale * self._group.size)


def flat_model_of(parameter: Parameter) -> FlatModel | None:
    """The wrapper whose buffers hold a parameter."""
    return getattr(parameter, "flat_model", None)


def takes_gradients(parameter: Parameter) -> bool:
    """Whether gradients of ``value_and_grad`` reach the buffers of a parameter by themselves."""
    return getattr(parameter, "takes_gradients", False)


class DistributedDataParallel(Cell):
    """A model whose gradients are reduced over data x context parallel ranks.

    Gradients reach the buffers from ``TrainOneStepCell``, and also from ``ops.value_and_grad``.

    Args:
        config: the training section; its ``loss_reduction`` says whether gradients are averaged.
        ddp_config: options of the reduction.
        module: the model, or the chunk of a pipeline stage.
        disable_bucketing: one bucket per buffer.

    Parallelism: built by all data parallel ranks; ``finish_grad_sync`` is collective.
    """

    def __init__(
        self,
        config: TrainingConfig,
        ddp_config: settings.DistributedDataParallelConfig,
        module: Cell,
        disable_bucketing: bool = False,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.config, self.ddp_config, self.module = config, ddp_config, module
        self.flat = FlatModel(
            ddp_config,
            module,
            disable_bucketing=disable_bucketing,
            sums=getattr(config, "loss_reduction", "mean") == "sum",
        )
        self._hooks = []
        for _, parameter in named_parameters(module):
            parameter.takes_gradients = True
            self._hooks.append(parameter.register_hook(_Arrival(parameter)))

    def construct(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of the model."""
        return self.module(*args, **kwargs)

    @property
    def buffers(self) -> list[ParamAndGradBuffer]:
        """The flat buffers."""
        return self.flat.buffers

    def set_input_tensor(self, input_tensor: Tensor | None) -> None:
        """Activations from the previous pipeline stage."""
        self.module.set_input_tensor(input_tensor)

    def zero_grad_buffer(self) -> None:
        """Forget all gradients; at the start of every step."""
        self.flat.zero_grad_buffer()

    def no_sync(self) -> AbstractContextManager[None]:
        """Context of all micro-batches of a step but the last."""
        return self.flat.no_sync()

    def start_grad_sync(self, *unused: Any) -> None:
        """Start the reductions."""
        self.flat.start_grad_sync()

    def finish_grad_sync(self) -> None:
        """Complete the reductions."""
        self.flat.finish_grad_sync()

    final_grad_reduce = finish_grad_sync
    """The predecessor's name."""


class _Arrival:
    """Hook of a parameter: brings gradients that our own backward does not into the buffer."""

    def __init__(self, parameter: Parameter) -> None:
        self._parameter = parameter

    def __call__(self, grad: Tensor) -> Tensor:
        if not autograd.is_backward_running():
            if getattr(self._parameter, "main_grad", None) is None:
                raise ValueError(
                    "gradients that are sharded (zero_level z2, z3) cannot come from "
                    "value_and_grad; train with TrainOneStepCell"
                )
            add_(self._parameter.main_grad, grad.contiguous())
        return grad
