# SPDX-License-Identifier: Apache-2.0
"""What single iterations computed with, on disk: weights, gradients, activations, loads of experts.

Weights (after the step) and their gradients (reduced over data-parallel ranks, before clipping) are
written like checkpoints below ``params`` and ``wgrads`` of the folder of checkpoints, each tensor
whole, whatever the layout. What goes through linear layers is one safetensors file of every rank
that holds its own part of the model, below ``activations`` and ``dgrads``: of the last micro-batch,
on the first data-parallel replica.

Source: Megatron-LM ``train_step``, ``activation_logging``, ``dgrad_logging`` (what is written when;
its files are pickles).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.config import AllConfig, to_yaml
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.dist_checkpointing.live_state import (
    LiveTensor,
    gradient_tensors,
    live_tensors,
)
from mindspeed_ms.core.dist_checkpointing.saver import CheckpointSaver, SaveSettings, Snapshot
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from mindspeed_ms.core.tensor_parallel.replicated import ReplicatedLinear
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.formats.containers.safetensors_file import Entry, write_file
from mindspeed_ms.legacy.model.moe.moe_layer import MoELayer
from mindspeed_ms.legacy.model.moe.router import TopKRouter

LINEAR = (
    *(ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding),
    *(ReplicatedLinear, TopKRouter),
)
"""Cells whose inputs and outputs are written."""


def saved_steps(config: AllConfig, models: Sequence[DistributedDataParallel]) -> SavedSteps | None:
    """What writes single iterations of a run; None if it asks for none.

    Raises:
        ValueError: the run has no folder of checkpoints.

    Parallelism: collective over the world.
    """
    training = config.training_config
    intervals = {
        "params": training.save_params_interval,
        "wgrads": training.save_wgrads_interval,
        "activations": training.save_activations_interval,
        "dgrads": training.save_dgrads_interval,
        "tokens_per_expert": training.save_tokens_per_expert_interval,
    }
    asked = {label: interval for label, interval in intervals.items() if interval is not None}
    if not asked:
        return None
    if not training.save_checkpoints:
        name = next(iter(asked)).replace("_", "-")
        raise ValueError(
            f"--save-{name}-interval writes below the folder of checkpoints; give --save as well"
        )
    return SavedSteps(config, models, asked)


class SavedSteps:
    """Writes what was asked for of the iterations that its interval divides.

    Args:
        config: the configuration.
        models: the chunks of this rank.
        intervals: what is written -> every how many iterations.

    Parallelism: collective over the world, as are its methods.
    """

    def __init__(
        self,
        config: AllConfig,
        models: Sequence[DistributedDataParallel],
        intervals: dict[str, int],
    ) -> None:
        self._config, self._models, self._intervals = config, models, intervals
        self._root = Path(config.training_config.output_dir)
        self._savers: dict[str, CheckpointSaver] = {
            label: CheckpointSaver(SaveSettings(root=self._root / label))
            for label in ("params", "wgrads")
            if label in intervals
        }
        for saver in self._savers.values():
            saver.open()
        self._hooks: list[Any] = []
        self._seen: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        self._loads: dict[tuple[str, int], list[list[int]]] = defaultdict(list)
        self._due: set[str] = set()

    def begin(self, iteration: int) -> None:
        """An iteration is about to run: watch the cells as far as it is to be written."""
        self._due = {
            label for label, interval in self._intervals.items() if iteration % interval == 0
        }
        if not self._due:
            return
        for chunk, model in enumerate(self._models):
            for name, cell in model.module.cells_and_names():
                if isinstance(cell, LINEAR) and _is_first_replica():
                    self._watch(f"model_chunk{chunk}/{name}", cell)
                if isinstance(cell, MoELayer) and "tokens_per_expert" in self._due:
                    place = (name, cell.router.layer_number - 1)
                    hook = cell.experts.register_forward_hook(self._counting(place))
                    self._hooks.append(hook)

    def _watch(self, name: str, cell: Cell) -> None:
        if "activations" in self._due:
            hook = cell.register_forward_hook(self._noting("activations", name))
            self._hooks.append(hook)
        if "dgrads" in self._due:
            hook = cell.register_backward_hook(self._noting("dgrads", name))
            self._hooks.append(hook)

    def _noting(self, label: str, name: str) -> Callable[[Cell, Any, Any], None]:
        """A hook; what comes last stays."""

        def note(_cell: Cell, inputs: Any, outputs: Any) -> None:
            for kind, values in (("input", inputs), ("output", outputs)):
                for number, value in enumerate(_tensors(values)):
                    if value is not None:
                        self._seen[label][f"{name}/{kind}{number}"] = _copied(value)

        return note

    def _counting(self, place: tuple[str, int]) -> Callable[[Cell, Any, Any], None]:
        def count(_cell: Cell, inputs: Any, _outputs: Any) -> None:
            self._loads[place].append([int(tokens) for tokens in inputs[1]])

        return count

    def after_backward(self, iteration: int) -> None:
        """Gradients are reduced and not applied yet."""
        if not self._due:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for label in ("activations", "dgrads"):
            if label in self._due and self._seen[label]:
                folder = storage.iteration_folder(self._root / label, iteration)
                folder.mkdir(parents=True, exist_ok=True)
                entries = [
                    Entry(name, "I32" if array.dtype == np.int32 else "F32", array.shape, array)
                    for name, array in self._seen[label].items()
                ]
                write_file(folder / f"rank_{comm.get_rank():05d}.safetensors", entries)
        self._seen.clear()
        if self._loads:
            self._write_loads(iteration)
        if "wgrads" in self._due:
            self._save("wgrads", iteration, gradient_tensors(self._models))

    def after_update(self, iteration: int) -> None:
        """The optimizer has taken its step."""
        if "params" in self._due:
            for model in self._models:
                model.finish_param_sync()
            self._save("params", iteration, live_tensors(self._models))

    def _save(self, label: str, iteration: int, tensors: Sequence[LiveTensor]) -> None:
        saver = self._savers[label]
        common = {"iteration": iteration, "config": self._config.to_dict()}
        snapshot = Snapshot(
            iteration=iteration, common=common, rank_state={}, config=to_yaml(self._config)
        )
        saver.save(tensors, snapshot)
        saver.finish()

    def _write_loads(self, iteration: int) -> None:
        """One line a layer, in the form and under the name that Megatron gives them."""
        folder = self._root / "tokens_per_expert"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"rank{comm.get_rank()}.jsonl").open("a", encoding="utf-8") as file:
            for (name, layer), loads in self._loads.items():
                block: dict[str, Any] = {"block": "decoder", "layer": layer}
                if depth := re.search(r"\bmtp\.layers\.(\d+)", name):
                    block = {"block": "mtp", "mtp_idx": int(depth[1]), "layer": 0}
                file.write(json.dumps({"iter": iteration, **block, "tpe": loads}) + "\n")
        self._loads.clear()

    def close(self) -> None:
        """Give the folders up; may be called again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for saver in self._savers.values():
            saver.abandon()


def _is_first_replica() -> bool:
    return parallel_state.get_data_parallel_rank() == 0


def _tensors(values: Any) -> Iterator[Tensor | None]:
    for value in values if isinstance(values, (tuple, list)) else (values,):
        yield value if isinstance(value, Tensor) else None


def _copied(value: Tensor) -> np.ndarray:
    """A copy: what a step computes with may be overwritten later in it."""
    if value.dtype in (mstype.bfloat16, mstype.float16):
        wide = memory.empty(value.shape)
        ops.copy_cast_(wide.view((-1,)), memory.contiguous(value).view((-1,)))
        return memory.as_numpy(wide)
    array = np.ascontiguousarray(memory.as_numpy(value))
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
