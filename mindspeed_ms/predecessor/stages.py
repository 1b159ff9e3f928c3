# SPDX-License-Identifier: Apache-2.0
"""What a script's own pipeline stages say of themselves, in the engine's terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.nn import Cell, CellList

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import ReduceOp
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import shard_of


class ModelChunks(CellList):
    """The chunks of this rank's stage: a list, and a single one can be called as the model.

    Args:
        chunks: in the order of their virtual stages; parameters keep their names, unless two
            chunks use the same.
    """

    def __init__(self, chunks: Sequence[Cell]) -> None:
        names = [param.name for chunk in chunks for param in chunk.trainable_params()]
        super().__init__(chunks, auto_prefix=len(set(names)) < len(names))

    def construct(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Forward of the only chunk.

        Raises:
            ValueError: there are several, which a schedule calls.
        """
        return self._only("call")(*args, **kwargs)

    def set_input_tensor(self, input_tensor: Tensor | None) -> None:
        """Activations from the previous pipeline stage, for the only chunk."""
        self._only("set_input_tensor").set_input_tensor(input_tensor)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Members of the only chunk are members of the list."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            cells = self.__dict__.get("_cells") or {}
            if len(cells) != 1 or name.startswith("__"):
                raise
            return getattr(next(iter(cells.values())), name)

    def _only(self, what: str) -> Cell:
        if len(self) != 1:
            raise ValueError(f"{what}: there are {len(self)} model chunks; name one by its index")
        return self[0]


def mark_shared_weights(chunk: Cell) -> None:
    """Tell the engine which weights another stage holds a copy of: ``shared_weight_name_list``.

    Their gradients are summed over the first and the last stage.
    """
    group = parallel_state.get_embedding_group()
    if parallel_state.get_pipeline_model_parallel_world_size() == 1 or group.rank < 0:
        return
    for _, cell in chunk.cells_and_names():
        names = getattr(cell, "shared_weight_name_list", None) or ()
        for path, param in cell.parameters_and_names() if names else ():
            if param.name in names or path in names:
                param.shard = replace(shard_of(param), is_tied=True, shared=group.rank > 0)


def fill_shared_weights(chunks: Sequence[Cell]) -> bool:
    """Copies of a shared weight that are all zero get the first stage's values.

    Returns:
        Whether values changed.

    Parallelism: collective over the embedding group.
    """
    group = parallel_state.get_embedding_group()
    if parallel_state.get_pipeline_model_parallel_world_size() == 1 or group.rank < 0:
        return False
    tied = [
        param for chunk in chunks for param in chunk.trainable_params() if shard_of(param).is_tied
    ]
    empty = bool(tied) and group.rank > 0 and not any(param.asnumpy().any() for param in tied)
    flag = memory.from_numpy(np.array([float(empty), float(not tied)], np.float32))
    comm.all_reduce(flag, op=ReduceOp.MAX, group=group)
    is_empty, is_missing = memory.as_numpy(flag) > 0
    if not is_empty or is_missing:
        return False
    for param in tied:
        comm.all_reduce(param, group=group)
    return True


class StageInput:
    """Hands a stage's input to a script's network, with a way back for its gradient.

    Networks often copy what ``set_input_tensor`` gets into a parameter that is not trained
    (``set_hidden_states``). Nothing flows back through a copy, so the tensor itself stands in the
    parameter's place while the network runs.

    Args:
        network: has ``set_input_tensor``.
    """

    def __init__(self, network: Cell) -> None:
        self._network = network
        self._tensor: Tensor | None = None
        self._places: list[tuple[Cell, str]] | None = None

    def set(self, tensor: Tensor | None) -> None:
        """Remember the activations; None forgets them, which the network is not told."""
        self._tensor = tensor
        if tensor is None:
            return
        if not self._places:
            self._network.set_input_tensor(tensor)
        if self._places is None:
            self._places = list(_copies(self._network, tensor))

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """The network reads the tensor where it keeps its copy."""
        places = self._places if self._places and self._tensor is not None else []
        for cell, name in places:
            # An attribute of the object is found before the parameter, which stays where it is.
            cell.__dict__[name] = self._tensor
        try:
            yield
        finally:
            for cell, name in places:
                del cell.__dict__[name]


def _copies(network: Cell, tensor: Tensor) -> Iterator[tuple[Cell, str]]:
    """Where a network keeps a copy of a tensor in a parameter that is not trained."""
    for _, cell in network.cells_and_names():
        for name, param in cell._params.items():
            if isinstance(param, Parameter) and not param.requires_grad:
                if tuple(param.shape) == tuple(tensor.shape) and np.array_equal(
                    param.asnumpy(), tensor.asnumpy()
                ):
                    yield cell, name


class ScriptStage:
    """A chunk of a script's own as the schedule wants it: called, and given its input.

    Args:
        chunk: the network, or its wrapper with ``no_sync``.
    """

    def __init__(self, chunk: Cell) -> None:
        self._chunk = chunk
        network: Any = chunk
        while hasattr(network, "module"):
            network = network.module
        self._input = StageInput(network)
        if hasattr(chunk, "no_sync"):
            self.no_sync: Callable[[], Any] = chunk.no_sync

    def set_input_tensor(self, tensor: Tensor | None) -> None:
        """Activations from the previous stage."""
        self._input.set(tensor)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Forward of the chunk."""
        with self._input.standing_in():
            return self._chunk(*args, **kwargs)
