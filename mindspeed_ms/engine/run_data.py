# SPDX-License-Identifier: Apache-2.0
"""The micro-batches of a run: training, and what is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.data.loader import PretrainingDataLoader
from mindspeed_ms.data.pretraining_loader import build_pretraining_data_loader
from mindspeed_ms.engine.batch_counts import num_samples
from mindspeed_ms.engine.datasets import loader_settings, train_valid_test_datasets_provider
from mindspeed_ms.engine.micro_batches import (
    EndlessLoader,
    Position,
    SharedLoader,
    is_data_needed_on_rank,
)
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.engine.train_state import TrainState

UNKNOWN_LENGTH = -1
"""Of a user's own loader that does not tell."""


@dataclass(slots=True)
class EvaluationSet:
    """Data that is evaluated, some of it each time; the next evaluation goes on behind it."""

    iterator: EndlessLoader | SharedLoader
    """Micro-batches without end."""

    num_microbatches: int
    """Micro-batches of this rank each time."""

    suffix: str = ""
    """What tells several sets apart in the log, ``-0`` or ``-name``."""


@dataclass(slots=True)
class RunData:
    """All micro-batches of a run."""

    train: EndlessLoader | SharedLoader | None = None
    valid: list[EvaluationSet] = field(default_factory=list)
    test: list[EvaluationSet] = field(default_factory=list)

    def close(self) -> None:
        """End all reading threads."""
        for loader in (self.train, *(one.iterator for one in (*self.valid, *self.test))):
            if loader is not None:
                loader.close()


def build_run_data(
    config: AllConfig,
    datasets_provider: Callable | None = None,
    train_data_loader: Iterable | None = None,
    state: TrainState | None = None,
) -> RunData:
    """Build datasets and loaders.

    Args:
        config: the configuration.
        datasets_provider: numbers of samples -> (train, valid, test) datasets, None on ranks that
            read nothing; None for the configured data.
        train_data_loader: training micro-batches of this rank instead; then only a provider that
            is given too has something to evaluate.
            Either every rank of a tensor-parallel group has one, or the first alone, whose
            micro-batches the others then get; ranks that need no data need none.
        state: where the run stands; data goes on from there.

    Raises:
        ValueError: contradictory options, unusable data, or a full validation of too little data.

    Parallelism: called by every rank together.
    """
    state = state or TrainState()
    given = _who_has(train_data_loader)
    own_train = None
    if any(given):
        own_train = _given_loader(config, train_data_loader, given, state)
        if datasets_provider is None:
            return RunData(train=own_train)
    provider = datasets_provider or train_valid_test_datasets_provider
    datasets = provider(num_samples(config, state))
    # [split][set]
    sets = [list(one) if isinstance(one, (list, tuple)) else [one] for one in datasets]
    lengths = _agreed_lengths(sets)
    training = config.training_config
    evaluated_size = config.evaluation_micro_batch_size
    data = RunData(train=own_train)
    if lengths[0] and own_train is None:
        data.train = _shared(
            config, _get(sets[0], 0), state.position_in_data, config.dataset_config.batch_size
        )
    is_evaluated = training.full_validation or training.eval_iters > 0
    names = training.validation_set_names
    count = len(lengths[1])
    if names is not None and len(names) != count:
        raise ValueError(
            f"validation_set_names has {len(names)} names for {count} validation sets; give one "
            "each, or leave them out"
        )
    for number, length in enumerate(lengths[1] if is_evaluated else ()):
        skipped = 0 if training.full_validation else state.consumed_valid_samples
        label = str(number) if names is None else names[number]
        is_apart = config.dataset_config.multiple_validation_sets or names is not None
        data.valid.append(
            EvaluationSet(
                _shared(config, _get(sets[1], number), skipped, evaluated_size),
                num_evaluation_microbatches(config, length, is_full=training.full_validation),
                f"-{label}" if is_apart else "",
            )
        )
    if lengths[2] and training.eval_iters > 0:
        microbatches = num_evaluation_microbatches(config, lengths[2][0], is_full=False)
        data.test.append(
            EvaluationSet(_shared(config, _get(sets[2], 0), 0, evaluated_size), microbatches)
        )
    return data


def whole_set(config: AllConfig, dataset: Any) -> EvaluationSet:
    """All of a dataset, to be evaluated once.

    Args:
        config: the configuration.
        dataset: samples; None on ranks that read nothing.

    Raises:
        ValueError: it is below one micro-batch per data-parallel rank.

    Parallelism: called by every rank together.
    """
    (lengths,) = _agreed_lengths([[dataset]])
    number = num_evaluation_microbatches(config, max(lengths, default=0), is_full=True)
    return EvaluationSet(_shared(config, dataset, 0, config.evaluation_micro_batch_size), number)


def _who_has(loader: Iterable | None) -> list[bool]:
    """For each rank of the world, whether it was given a loader."""
    has_one = loader is not None
    return comm.all_gather_object(has_one) if comm.get_world_size() > 1 else [has_one]


def _given_loader(
    config: AllConfig, loader: Iterable | None, given: Sequence[bool], state: TrainState
) -> EndlessLoader | SharedLoader:
    """The user's own loader on this rank, or that of the first rank of the tensor-parallel group.

    It is advanced behind what the run has trained on.

    Raises:
        ValueError: one of this package's loaders, made for another layout or batch size.
        RuntimeError: this rank needs data, but the first rank of its group was given none.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    settings = loader_settings(config.dataset_config)
    if isinstance(loader, PretrainingDataLoader):
        loader.check_ranks(settings)
    block = settings.micro_batch_size * settings.data_parallel_size
    position = Position(state.position_in_data, block)
    if position.samples:
        print_rank_0(
            f"  the loader that was passed goes on behind {position.samples} samples; "
            "--new-dataset (YAML: new_dataset) starts it at its beginning"
        )
    if loader is not None and all(given[rank] for rank in group.ranks):
        return EndlessLoader(loader, position)
    is_needed = is_data_needed_on_rank(config)
    if is_needed and not given[group.ranks[0]]:
        raise RuntimeError(
            f"rank {comm.get_rank()} needs training data, but rank {group.ranks[0]}, the first of "
            "its tensor-parallel group, was given no train_data_loader; build one on every first "
            "tensor-parallel rank of the first and last pipeline stage"
        )
    is_reader = comm.get_rank() == group.ranks[0]
    return SharedLoader(loader if is_reader else None, is_needed, position)


def num_evaluation_microbatches(config: AllConfig, length: int, *, is_full: bool) -> int:
    """Micro-batches of this rank in one evaluation of a set of ``length`` samples.

    Raises:
        ValueError: a full validation of a set whose length is unknown, or below one micro-batch
            per data-parallel rank.
    """
    ranks = parallel_state.get_data_parallel_world_size()
    block = config.evaluation_micro_batch_size * ranks
    if not is_full:
        batch = config.evaluation_batch_size(comm.get_world_size())
        return config.training_config.eval_iters * (batch // block)
    if length < block:
        raise ValueError(
            f"full_validation needs at least one micro-batch per rank ({block} samples), the "
            f"validation set has {'no known number' if length < 0 else length}; use more data or "
            "smaller micro-batches, or leave full_validation out"
        )
    return length // block


def _agreed_lengths(sets: Sequence[Sequence[Any]]) -> list[list[int]]:
    """Samples of each set of each split, from the ranks that have them."""
    mine = [[_length(one) for one in split if one is not None] for split in sets]
    everyones = comm.all_gather_object(mine) if comm.get_world_size() > 1 else [mine]
    return [max((one[split] for one in everyones), key=len) for split in range(len(sets))]


def _length(dataset: Any) -> int:
    return len(dataset) if hasattr(dataset, "__len__") else UNKNOWN_LENGTH


def _get(sets: Sequence[Any], number: int) -> Any:
    return sets[number] if number < len(sets) else None


def _shared(
    config: AllConfig, dataset: Any, consumed_samples: int, micro_batch_size: int
) -> SharedLoader:
    is_needed = is_data_needed_on_rank(config)
    is_reader = is_needed and parallel_state.get_tensor_model_parallel_rank() == 0
    if is_reader and dataset is None:
        raise RuntimeError(
            f"rank {comm.get_rank()} reads data for its tensor-parallel group, but the datasets "
            "provider gave it none; build datasets on every first tensor-parallel rank of the "
            "first and last pipeline stage"
        )
    settings = loader_settings(config.dataset_config, micro_batch_size)
    data = dataset if is_reader else None
    loader = build_pretraining_data_loader(data, consumed_samples, settings=settings)
    block = settings.micro_batch_size * settings.data_parallel_size
    return SharedLoader(loader, is_needed, Position(consumed_samples, block))
