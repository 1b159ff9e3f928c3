"""From configuration to micro-batches on this rank. Legend: b micro-batch, s sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.config import AllConfig, DatasetConfig
from mindspeed_ms.core.datasets.builder import ThreeDatasets, build_train_valid_test_datasets
from mindspeed_ms.core.datasets.gpt_dataset_config import (
    GPTDatasetConfig,
    TokenizerInfo,
    TokenizerLike,
)
from mindspeed_ms.core.datasets.loader import Batch, LoaderSettings, set_loader_defaults
from mindspeed_ms.core.datasets.utils import Blend, get_blend_from_list
from mindspeed_ms.training.global_vars import get_all_config
from mindspeed_ms.training.tokenizer import build_tokenizer

DEFAULT_SPLIT = "969, 30, 1"
MODEL_INPUTS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")
"""Order of Megatron's ``get_batch``."""


def set_loader_settings(dataset: DatasetConfig) -> None:
    """Tell ``build_pretraining_data_loader`` what to load on this rank."""
    set_loader_defaults(
        LoaderSettings(
            micro_batch_size=dataset.batch_size,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            dataloader_type=dataset.dataloader_type,
            num_workers=dataset.num_workers,
            data_sharding=dataset.data_sharding,
        )
    )


def get_train_valid_test_num_samples(
    all_config: AllConfig | None = None,
) -> tuple[int, int, int]:
    """Samples that training, validation and test will read.

    Source: Megatron-LM ``get_train_valid_test_num_samples`` (formulas).
    """
    config = all_config or get_all_config()
    training = config.training_config
    batch = config.global_batch_size(comm.get_world_size())
    train_samples = training.train_samples or training.training_iters * batch
    iterations = train_samples // batch
    evaluations = iterations // training.eval_interval + 1 if training.eval_interval else 1
    eval_samples = training.eval_iters * batch
    return train_samples, evaluations * eval_samples, eval_samples


def train_valid_test_datasets_provider(num_samples: tuple[int, int, int]) -> ThreeDatasets:
    """The datasets of the run's configuration; the first rank of each host builds their indices."""
    return build_train_valid_test_datasets(
        gpt_dataset_config(get_all_config()),
        num_samples,
        barrier=comm.barrier,
        is_builder=comm.get_local_rank() == 0,
    )


def gpt_dataset_config(config: AllConfig) -> GPTDatasetConfig:
    """Options of the datasets.

    Raises:
        ValueError: no data was named, or options that contradict each other.
    """
    dataset = config.dataset_config
    per_split = (dataset.train_data_path, dataset.valid_data_path, dataset.test_data_path)
    blend: Blend | None = None
    blend_per_split: tuple[Blend | None, Blend | None, Blend | None] | None = None
    if any(per_split):
        train, valid, test = (get_blend_from_list(paths) for paths in per_split)
        blend_per_split = (train, valid, test)
    elif dataset.data_path:
        blend = get_blend_from_list(dataset.data_path)
    elif not dataset.mock_data:
        raise ValueError(
            "no training data is given; set data_path to the prefix of a .bin/.idx pair, or "
            "mock_data to train on made-up tokens"
        )
    return GPTDatasetConfig(
        random_seed=1234 if config.training_config.seed is None else config.training_config.seed,
        sequence_length=config.model_config.seq_length,
        tokenizer=tokenizer_of(config),
        blend=blend,
        blend_per_split=blend_per_split,
        split=(dataset.split or DEFAULT_SPLIT) if blend is not None else None,
        path_to_cache=dataset.data_cache_path,
        mmap_bin_files=dataset.mmap_bin_files,
        reset_position_ids=dataset.reset_position_ids,
        reset_attention_mask=dataset.reset_attention_mask,
        eod_mask_loss=dataset.eod_mask_loss,
        # A plain causal mask is a property of the attention kernel; only document masks are data.
        create_attention_mask=dataset.reset_attention_mask,
    )


def tokenizer_of(config: AllConfig) -> TokenizerLike:
    """The configured tokenizer, or what is known of it when the data is already tokenized."""
    dataset = config.dataset_config
    if dataset.tokenizer_type is None:
        return TokenizerInfo(
            vocab_size=config.model_config.vocab_size,
            eod=dataset.eos_token_id,
            eos=dataset.eos_token_id,
            pad=dataset.pad_token_id,
        )
    return build_tokenizer(
        dataset.tokenizer_type,
        tokenizer_model=dataset.tokenizer_model,
        vocab_file=dataset.vocab_file,
        merge_file=dataset.merge_file,
        vocab_size=dataset.vocab_size,
        vocab_extra_ids=dataset.vocab_extra_ids,
    )


def get_batch(data_iterator: Iterator[Batch]) -> dict[str, Tensor | None]:
    """The next micro-batch as tensors: the arguments of ``GPTModel``.

    tokens, labels, position_ids int32 [b, s]; loss_mask fp32 [b, s]; attention_mask bool
    [b, 1, s, s] or None for causal.
    """
    batch = next(data_iterator)
    return {name: _as_tensor(batch.get(name)) for name in MODEL_INPUTS}


def _as_tensor(value: np.ndarray | Tensor | None) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    if value.dtype == np.int64:
        value = value.astype(np.int32)
    return memory.from_numpy(np.ascontiguousarray(value))


class EndlessLoader:
    """Micro-batches of a loader, pass after pass, with the number of the pass.

    Loaders of other libraries work too: MindSpore datasets are read as dicts of arrays.
    """

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._loader = loader
        self._iterator = self._start()
        self.epoch = 0
        self.batches_in_epoch = 0

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

    def _start(self) -> Iterator[Batch]:
        if hasattr(self._loader, "create_dict_iterator"):
            return iter(self._loader.create_dict_iterator(output_numpy=True, num_epochs=1))
        return iter(self._loader)
