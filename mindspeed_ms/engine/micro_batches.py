# SPDX-License-Identifier: Apache-2.0
"""Micro-batches on their way to the model: read once per tensor-parallel group, sliced, converted.

Legend: b micro-batch, s sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.context_parallel import ContextParallel, context_parallel
from mindspeed_ms.data.loader import Batch, PretrainingDataLoader, collate
from mindspeed_ms.data.masks import get_ltor_masks_and_position_ids
from mindspeed_ms.engine.current_config import get_all_config

MODEL_INPUTS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")
"""Order of Megatron's ``get_batch``."""

ROWS = "input_ids"
"""Name of fixed-length rows, [b, s + 1], in the batches of a user's own loader."""

DOCUMENTS = "document_ids"
"""Name of the documents' numbers, [b, s], in a batch; they are whole on every context rank."""


def is_first_or_last_pipeline_stage() -> bool:
    """Whether this rank holds the beginning or the end of the model."""
    return parallel_state.is_pipeline_first_stage(
        ignore_virtual=True
    ) or parallel_state.is_pipeline_last_stage(ignore_virtual=True)


def is_data_needed_on_rank(config: AllConfig) -> bool:
    """Whether the model part of this rank takes anything from a batch.

    Middle stages need what hides keys, unless that is the same for all batches.
    """
    dataset = config.dataset_config
    is_hidden_by_data = config.parallel_config.attention_mask_type == "general"
    has_documents = (
        dataset.reset_attention_mask
        or dataset.sft
        or (dataset.is_instruction_dataset and dataset.reset_position_ids)
    )
    return is_first_or_last_pipeline_stage() or has_documents or is_hidden_by_data


def is_dataset_built_on_rank(config: AllConfig | None = None) -> bool:
    """Whether this rank reads data files: the first tensor-parallel rank where data is needed."""
    is_needed = is_data_needed_on_rank(config or get_all_config())
    return is_needed and parallel_state.get_tensor_model_parallel_rank() == 0


@dataclass(frozen=True, slots=True)
class Position:
    """Where in its data a run goes on."""

    samples: int = 0
    """Consumed by all ranks."""
    block: int = 1
    """Samples of one micro-batch on every data-parallel rank."""

    @property
    def batches(self) -> int:
        """Micro-batches consumed by this rank."""
        return self.samples // self.block


class EndlessLoader:
    """Micro-batches of a loader, pass after pass, with the number of the pass.

    Loaders of other libraries work too: MindSpore datasets are read as dicts of arrays. To go on at
    a position, loaders of this package are set there, and others are read up to it.

    Args:
        loader: micro-batches of one pass each time it is iterated.
        position: where to begin; a loader of this package that was made for another one, and not
            used yet, keeps its own.
    """

    def __init__(self, loader: Iterable[Batch], position: Position | None = None) -> None:
        self._loader = loader
        self.epoch = 0
        self.batches_in_epoch = 0
        position = position or Position()
        if isinstance(loader, PretrainingDataLoader):
            if loader.is_begun or not loader.consumed_samples:
                loader.start_at(position.samples)
            self.epoch, self.batches_in_epoch = divmod(
                loader.consumed_samples // position.block, loader.batches_per_pass
            )
            self._iterator = self._start()
        else:
            self._iterator = self._start()
            self._pass_over(position.batches)

    def _pass_over(self, count: int) -> None:
        if isinstance(self._loader, Sequence) and self._loader:  # all its passes are equal
            self.epoch, count = divmod(count, len(self._loader))
        for _ in range(count):
            next(self)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self.batches_in_epoch == 0:
                raise RuntimeError(
                    "the data loader yields no micro-batch; the dataset must hold at least "
                    "micro_batch_size x data_parallel_size samples"
                ) from None
            self.epoch += 1
            self.batches_in_epoch = 0
            self._iterator = self._start()
            return next(self)
        self.batches_in_epoch += 1
        return batch

    def close(self) -> None:
        """End the pass that is going on, and with it the loader's reading threads.

        The loader itself stays as it is: it may be the user's, for another run.
        """
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        self._loader = ()

    def _start(self) -> Iterator[Batch]:
        if hasattr(self._loader, "create_dict_iterator"):
            return iter(self._loader.create_dict_iterator(output_numpy=True, num_epochs=1))
        return iter(self._loader)


class SharedLoader:
    """Micro-batches of a loader that only the first rank of a tensor-parallel group has.

    On ranks that need no data each micro-batch is an empty dict.

    Args:
        loader: micro-batches; None on the other ranks.
        is_needed: whether this rank (and its group with it) needs data.
        position: where to begin, see ``EndlessLoader``.

    Parallelism:
        Collective over the tensor-parallel group: all its ranks take micro-batches in the same
        order. Two broadcasts each, of 32 bytes and of all arrays in one buffer.
    """

    def __init__(
        self,
        loader: Iterable[Batch] | None,
        is_needed: bool = True,
        position: Position | None = None,
    ) -> None:
        self._group = parallel_state.get_tensor_model_parallel_group()
        self._source = self._group.ranks[0]
        self._is_needed = is_needed
        self._reader = None if loader is None else EndlessLoader(loader, position)
        self._layout: list[tuple[str, tuple[int, ...], str]] | None = None
        self.epoch = 0
        self.batches_in_epoch = 0 if position is None else position.batches

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._is_needed:
            self.batches_in_epoch += 1
            return {}
        if self._group.size == 1:
            assert self._reader is not None, "a group of one rank reads its own data"
            batch = next(self._reader)
            self.epoch, self.batches_in_epoch = self._reader.epoch, self._reader.batches_in_epoch
            return batch
        return self._send() if self._reader is not None else self._receive()

    def close(self) -> None:
        """End the loader's reading threads."""
        if self._reader is not None:
            self._reader.close()

    def _send(self) -> Batch:
        assert self._reader is not None, "only the reader sends"
        try:
            batch = {name: _narrow(value) for name, value in next(self._reader).items()}
        except Exception:
            self._header(-1)
            raise
        self.epoch, self.batches_in_epoch = self._reader.epoch, self._reader.batches_in_epoch
        layout = [(name, value.shape, value.dtype.str) for name, value in batch.items()]
        is_new = layout != self._layout
        self._header(int(is_new))
        if is_new:
            self._layout = comm.broadcast_object(layout, self._source, self._group)
        buffer = np.concatenate(
            [np.zeros(0, np.int32), *(_words(value) for value in batch.values())]
        )
        comm.broadcast(memory.from_numpy(buffer), self._source, self._group)
        return batch

    def _receive(self) -> Batch:
        kind, self.epoch, self.batches_in_epoch = self._header(0)
        if kind < 0:
            raise RuntimeError(
                f"rank {self._source}, which reads the data of this tensor-parallel group, failed; "
                "its own message says why"
            )
        if kind == 1:
            self._layout = comm.broadcast_object(None, self._source, self._group)
        assert self._layout is not None, "the first micro-batch tells the layout"
        counts = [_num_words(shape, dtype) for _, shape, dtype in self._layout]
        buffer = np.empty(sum(counts), dtype=np.int32)
        comm.broadcast(memory.from_numpy(buffer), self._source, self._group)
        parts = np.split(buffer, np.cumsum(counts)[:-1])
        return {
            name: part.view(dtype).reshape(-1)[: int(np.prod(shape))].reshape(shape)
            for part, (name, shape, dtype) in zip(parts, self._layout, strict=True)
        }

    def _header(self, kind: int) -> tuple[int, int, int]:
        """(-1 failed, 0 as before, 1 new layout), pass, micro-batches in it."""
        header = np.array([kind, self.epoch, self.batches_in_epoch, 0], dtype=np.int32)
        comm.broadcast(memory.from_numpy(header), self._source, self._group)
        return int(header[0]), int(header[1]), int(header[2])


def _narrow(value: Any) -> NDArray:
    """Token ids and positions fit 32 bits."""
    array = value.asnumpy() if isinstance(value, Tensor) else np.asarray(value)
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _words(value: NDArray) -> NDArray[np.int32]:
    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    padded = np.zeros(-(-data.size // 4) * 4, dtype=np.uint8)
    padded[: data.size] = data
    return padded.view(np.int32)


def _num_words(shape: tuple[int, ...], dtype: str) -> int:
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 4)


class BatchReader:
    """Reads micro-batches as the arguments of a model such as ``GPTModel``.

    tokens, labels, position_ids int32 [b, s]; loss_mask fp32 [b, s]; attention_mask the documents
    of packed sequences, bool [b, 1, s, s], or None for causal. With context parallelism, this
    rank's part of s; on pipeline stages that take nothing from a batch, all None.

    Args:
        config: how rows become batches, and how ranks share a sequence.
    """

    def __init__(self, config: AllConfig) -> None:
        self._config = config
        self._context = context_parallel(config.parallel_config)

    def __call__(self, data_iterator: Iterator[Batch]) -> dict[str, Tensor | ops.Documents | None]:
        """The next micro-batch as tensors."""
        batch = whole_sequences(next(data_iterator), self._config)
        if self._context is not None:
            batch = share_of_batch(batch, self._context)
        return _as_inputs(batch)


def get_batch(data_iterator: Iterator[Batch]) -> dict[str, Tensor | ops.Documents | None]:
    """The next micro-batch, read as the active run's configuration says; see ``BatchReader``."""
    return _as_inputs(get_batch_on_this_cp_rank(get_batch_on_this_tp_rank(data_iterator)))


def _as_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor | ops.Documents | None]:
    inputs = {name: _as_tensor(batch.get(name)) for name in MODEL_INPUTS}
    numbers = batch.get(DOCUMENTS)
    if numbers is not None and inputs["attention_mask"] is None:
        numbers = memory.as_numpy(numbers) if isinstance(numbers, Tensor) else numbers
        inputs["attention_mask"] = ops.Documents(numbers, numbers)
    return inputs


def get_batch_on_this_tp_rank(data_iterator: Iterator[Batch]) -> Batch:
    """The next micro-batch of whole sequences.

    The iterators of this package share micro-batches within the tensor-parallel group themselves.
    """
    batch = next(data_iterator)
    return whole_sequences(batch, get_all_config()) if _is_rows(batch) else batch


def get_batch_on_this_cp_rank(batch: Mapping[str, Any]) -> dict[str, Any]:
    """This rank's part of every sequence: a dict like the one given, of arrays or tensors."""
    if not parallel_state.model_parallel_is_initialized():
        return dict(batch)
    if parallel_state.get_context_parallel_world_size() == 1:
        return dict(batch)
    context = context_parallel(get_all_config().parallel_config)
    assert context is not None, "several ranks share a sequence"
    return share_of_batch(batch, context)


def share_of_batch(batch: Mapping[str, Any], context: ContextParallel) -> dict[str, Any]:
    """A rank's part of every sequence.

    Of a dense attention mask, the rows of the queries whose attention is computed here: with
    ulysses those of all ranks that exchange heads.
    """
    sliced: dict[str, Any] = {}
    for name, value in batch.items():
        if value is None or name not in MODEL_INPUTS:
            sliced[name] = value
            continue
        array = memory.as_numpy(value) if isinstance(value, Tensor) else value
        if name == "attention_mask":
            part = np.take(array, context.ring_positions(array.shape[-1]), axis=-2)
        else:
            part = np.take(array, context.positions(array.shape[1]), axis=1)
        sliced[name] = memory.from_numpy(part) if isinstance(value, Tensor) else part
    return sliced


def whole_sequences(batch: Batch, config: AllConfig) -> Batch:
    """The batch itself, or one made of its rows of tokens."""
    return batch_from_rows(batch[ROWS], config) if _is_rows(batch) else batch


def _is_rows(batch: Mapping[str, Any]) -> bool:
    return ROWS in batch and "tokens" not in batch


def batch_from_rows(rows: NDArray | Tensor, config: AllConfig) -> Batch:
    """Tokens, labels, masks and positions of rows of s + 1 tokens, [b, s + 1]."""
    dataset = config.dataset_config
    ids = _narrow(rows).astype(np.int64)
    samples = []
    for row in ids:
        tokens, labels = row[:-1].copy(), row[1:].copy()
        masks = get_ltor_masks_and_position_ids(
            tokens,
            dataset.eos_token_id,
            reset_position_ids=dataset.reset_position_ids,
            reset_attention_mask=dataset.reset_attention_mask,
            eod_mask_loss=dataset.eod_mask_loss,
            create_attention_mask=config.parallel_config.attention_mask_type == "general",
        )
        sample = {"tokens": tokens, "labels": labels, "position_ids": masks.position_ids}
        loss_mask = masks.loss_mask
        if dataset.pad_token_id is not None:
            loss_mask[labels == dataset.pad_token_id] = 0.0
        sample["loss_mask"] = loss_mask
        if masks.attention_mask is not None:
            sample["attention_mask"] = masks.attention_mask
        if masks.document_ids is not None:
            sample[DOCUMENTS] = masks.document_ids
        samples.append(sample)
    return collate(samples)


def _as_tensor(value: np.ndarray | Tensor | None) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    return memory.from_numpy(np.ascontiguousarray(_narrow(value)))
