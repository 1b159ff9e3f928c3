# SPDX-License-Identifier: Apache-2.0
"""From configuration to datasets on this rank."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from mindspeed_ms.config import AllConfig, DatasetConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.data.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from mindspeed_ms.data.builder import DatasetClass, ThreeDatasets
from mindspeed_ms.data.fim_dataset import GPTFIMDataset
from mindspeed_ms.data.gpt_dataset import GPTDataset, MockGPTDataset
from mindspeed_ms.data.gpt_dataset_config import (
    GPTDatasetConfig,
    GPTFIMDatasetConfig,
    TokenizerInfo,
    TokenizerLike,
)
from mindspeed_ms.data.instruction_dataset import InstructionDataset, InstructionDatasetConfig
from mindspeed_ms.data.loader import Batch, LoaderSettings, SampleDataset
from mindspeed_ms.data.pretraining_loader import build_pretraining_data_loader as _build_loader
from mindspeed_ms.data.sft_dataset import SFTDataset
from mindspeed_ms.data.token_rows import TokenRowsDataset, is_row_file
from mindspeed_ms.data.tokenizers import Tokenizer, TokenizerSettings, build_tokenizer
from mindspeed_ms.data.tokenizers.prompt_templates import end_of_turns, prompt_template
from mindspeed_ms.data.utils import Blend, Split, get_blend_from_list
from mindspeed_ms.engine.batch_counts import NumSamples, num_samples
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.micro_batches import (
    MODEL_INPUTS,
    EndlessLoader,
    SharedLoader,
    get_batch,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
    is_data_needed_on_rank,
    is_dataset_built_on_rank,
)
from mindspeed_ms.engine.train_state import TrainState
from mindspeed_ms.files.regular_file import json_object, read_text

__all__ = [
    "DEFAULT_SPLIT",
    "MODEL_INPUTS",
    "EndlessLoader",
    "SharedLoader",
    "build_pretraining_data_loader",
    "get_batch",
    "get_batch_on_this_cp_rank",
    "get_batch_on_this_tp_rank",
    "get_blend_and_blend_per_split",
    "get_train_valid_test_num_samples",
    "gpt_dataset_config",
    "is_data_needed_on_rank",
    "is_dataset_built_on_rank",
    "loader_settings",
    "named_tokenizer",
    "tokenizer_of",
    "train_valid_test_datasets_provider",
]

DEFAULT_SPLIT = "969, 30, 1"

BlendPerSplit = tuple[Blend | None, Blend | None, Blend | None]


def loader_settings(dataset: DatasetConfig, micro_batch_size: int | None = None) -> LoaderSettings:
    """What a loader reads on this rank, and how.

    Args:
        dataset: the options.
        micro_batch_size: None for the one of training.
    """
    return LoaderSettings(
        micro_batch_size=micro_batch_size or dataset.batch_size,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        dataloader_type=dataset.dataloader_type,
        num_workers=dataset.num_workers,
        data_sharding=dataset.data_sharding,
        drop_remainder=dataset.drop_remainder,
    )


def build_pretraining_data_loader(
    dataset: SampleDataset | None, consumed_samples: int
) -> Iterable[Batch] | None:
    """Loader of a dataset on this rank, starting behind the consumed samples.

    Batch size, order and threads are those of the active run's configuration.

    Args:
        dataset: numbered samples; None gives None. With ``--dataloader-type external`` it is a
            loader itself and returned as it is.
        consumed_samples: samples all ranks read in earlier runs.

    Raises:
        RuntimeError: there is no configuration yet.
        ValueError: no samples left, or sizes that do not fit.
    """
    settings = loader_settings(get_all_config().dataset_config)
    return _build_loader(dataset, consumed_samples, settings=settings)


def get_train_valid_test_num_samples(all_config: AllConfig | None = None) -> NumSamples:
    """Samples that training, validation and test of a whole run read; see ``num_samples``."""
    return num_samples(all_config or get_all_config(), TrainState())


def train_valid_test_datasets_provider(num_samples: NumSamples) -> ThreeDatasets:
    """The datasets of the run's configuration.

    Parallelism: called by every rank together; ranks that read no data get None.
    """
    config = get_all_config()
    options = gpt_dataset_config(config)
    builder = BlendedMegatronDatasetBuilder(
        dataset_class(config, options),
        num_samples,
        lambda: is_dataset_built_on_rank(config),
        options,
    )
    return builder.build()


def dataset_class(config: AllConfig, options: GPTDatasetConfig) -> DatasetClass:
    """Class of the configured datasets.

    Raises:
        ValueError: a data path ends in .npy or .mindrecord, another does not.
    """
    if config.dataset_config.sft:
        return SFTDataset
    if config.dataset_config.is_instruction_dataset:
        return InstructionDataset
    if config.dataset_config.fim_data:
        return GPTFIMDataset
    if options.mock:
        return MockGPTDataset
    blends = [options.blend] if options.blend else list(options.blend_per_split or ())
    prefixes = [prefix for blend in blends if blend is not None for prefix in blend[0]]
    are_rows = [is_row_file(prefix) for prefix in prefixes]
    if any(are_rows) and not all(are_rows):
        raise ValueError(
            f"data paths {prefixes} name rows of tokens (.npy, .mindrecord) and token files; use "
            "one kind only"
        )
    return TokenRowsDataset if any(are_rows) else GPTDataset


def get_blend_and_blend_per_split(
    dataset: DatasetConfig,
) -> tuple[Blend | None, BlendPerSplit | None]:
    """Data paths and their weights: for all splits together, or for each split.

    Raises:
        ValueError: two sources for the same, or a file that cannot be read.
    """
    per_split = (dataset.train_data_path, dataset.valid_data_path, dataset.test_data_path)
    given = {
        "data_path": dataset.data_path is not None,
        "data_args_path": dataset.data_args_path is not None,
        "train/valid/test_data_path": any(paths is not None for paths in per_split),
        "per_split_data_args_path": dataset.per_split_data_args_path is not None,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are given; name the data in one way, keep one")
    if dataset.data_args_path is not None:
        words = _read(dataset.data_args_path, "data_args_path").split()
        return get_blend_from_list(words), None
    if dataset.data_path is not None:
        return get_blend_from_list(dataset.data_path), None
    if dataset.per_split_data_args_path is not None:
        return None, _blends_of_file(dataset.per_split_data_args_path)
    if any(paths is not None for paths in per_split):
        train, valid, test = (get_blend_from_list(paths) for paths in per_split)
        return None, (train, valid, test)
    return None, None


def _blends_of_file(path: str) -> BlendPerSplit:
    content = _read_json(path, "per_split_data_args_path")
    missing = [split.name for split in Split if split.name not in content]
    if missing:
        raise ValueError(
            f"per_split_data_args_path {path} has no {', '.join(missing)}; it must hold train, "
            "valid and test, each a list of words, a text, or null"
        )
    lists = [content[split.name] for split in Split]
    words = [text.split() if isinstance(text, str) else text for text in lists]
    train, valid, test = (get_blend_from_list(one or None) for one in words)
    return train, valid, test


def _read(path: str, name: str) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} {path} cannot be read ({error}); correct the path") from error


def _read_json(path: str, name: str) -> dict[str, Any]:
    return json_object(_read(path, name), f"{name} {path}")


def gpt_dataset_config(config: AllConfig) -> GPTDatasetConfig:
    """Options of the datasets.

    Raises:
        ValueError: no data was named, or options that contradict each other.
    """
    dataset = config.dataset_config
    blend, blend_per_split = get_blend_and_blend_per_split(dataset)
    if blend is None and blend_per_split is None and not dataset.mock_data:
        raise ValueError(
            "no training data is given; set data_path to the prefix of a .bin/.idx pair, or "
            "mock_data to train on made-up tokens"
        )
    tokenizer = tokenizer_of(config)
    require_rows(config, tokenizer)
    sequences = None
    if dataset.per_dataset_sequences_path is not None:
        sequences = _read_json(dataset.per_dataset_sequences_path, "per_dataset_sequences_path")
    options: dict[str, Any] = {
        "random_seed": config.training_config.seed,
        "sequence_length": config.model_config.seq_length,
        "tokenizer": tokenizer,
        "blend": blend,
        "blend_per_split": blend_per_split,
        "split": (dataset.split or DEFAULT_SPLIT) if blend is not None else None,
        "multiple_validation_sets": dataset.multiple_validation_sets,
        "full_validation": config.training_config.full_validation,
        "num_dataset_builder_threads": dataset.num_dataset_builder_threads,
        "path_to_cache": dataset.data_cache_path,
        "object_storage_cache_path": dataset.object_storage_cache_path,
        "mmap_bin_files": dataset.mmap_bin_files,
        "reset_position_ids": dataset.reset_position_ids,
        "reset_attention_mask": dataset.reset_attention_mask,
        "eod_mask_loss": dataset.eod_mask_loss,
        # Causal masks and documents are options of the attention kernel, not dense masks.
        "create_attention_mask": config.parallel_config.attention_mask_type == "general",
        "mid_level_dataset_surplus": dataset.mid_level_dataset_surplus,
        "allow_ambiguous_pad_tokens": dataset.allow_ambiguous_pad_tokens,
        "context_parallel_size": config.parallel_config.context_parallel_size,
        "sequences_per_dataset": sequences,
    }
    if options["random_seed"] is None:
        options["random_seed"] = 1234
    if dataset.is_instruction_dataset:
        return InstructionDatasetConfig(**options, **_instruction_options(config, tokenizer))
    if not dataset.fim_data:
        return GPTDatasetConfig(**options)
    tokens = {
        "prefix": dataset.fim_prefix_token,
        "middle": dataset.fim_middle_token,
        "suffix": dataset.fim_suffix_token,
        "pad": dataset.fim_pad_token,
        "eod": dataset.fim_eod_token,
    }
    return GPTFIMDatasetConfig(
        **options,
        fim_rate=dataset.fim_rate,
        fim_spm_rate=dataset.fim_spm_rate,
        fim_extra_tokens=tokens,
        fim_split_sample=dataset.fim_split_sample,
        fim_fragment_rate=dataset.fim_fragment_rate,
        fim_no_prefix=dataset.fim_no_prefix,
    )


def _instruction_options(config: AllConfig, tokenizer: TokenizerLike) -> dict[str, Any]:
    """What instruction data has beyond other data."""
    dataset, parallel = config.dataset_config, config.parallel_config
    multiple = None
    if parallel.variable_seq_lengths:
        ranks = parallel.context_parallel_size
        shares = 2 * ranks if ranks > 1 else 1
        if parallel.sequence_parallel:
            shares *= parallel.tensor_model_parallel_size
        multiple = math.lcm(dataset.pad_to_multiple_of, shares)
    batch = config.training_config.global_batch_size
    if batch is None:
        batch = dataset.batch_size * parallel_state.get_data_parallel_world_size()
        batch *= dataset.micro_batch_num
    has_documents = dataset.reset_attention_mask or dataset.reset_position_ids
    template = None
    if dataset.prompt_type is not None and has_documents and not dataset.neat_pack:
        template = prompt_template(dataset.prompt_type, dataset.prompt_type_path)
    return {
        "shuffle": dataset.instruction_shuffle,
        "full_shuffle": dataset.full_shuffle_instruction_dataset,
        "pass_multiple": batch if dataset.padded_samples else 1,
        "documents": has_documents,
        "neat_pack": dataset.neat_pack,
        "end": end_of_turns(template, tokenizer),
        "plain_cut": dataset.cut_max_seqlen,
        "length_multiple": multiple,
    }


def require_rows(config: AllConfig, tokenizer: TokenizerLike) -> None:
    """Make sure that the model has a row for every id of the tokenizer.

    Raises:
        ValueError: it has fewer; ids beyond them would be read as nothing, without an error.
    """
    rows = config.model_config.vocab_size
    if tokenizer.vocab_size > rows:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {rows} rows "
            f"(model_config.vocab_size, --padded-vocab-size); give at least "
            f"{tokenizer.vocab_size}, or leave it out to take the tokenizer's"
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
    return named_tokenizer(dataset)


def named_tokenizer(dataset: DatasetConfig) -> Tokenizer:
    """The tokenizer that a configuration names, with all its settings.

    Raises:
        ValueError: it names none, or one that cannot be built.
    """
    if dataset.tokenizer_type is None:
        raise ValueError("the configuration names no tokenizer; set dataset_config.tokenizer_type")
    return build_tokenizer(
        TokenizerSettings(
            tokenizer_type=dataset.tokenizer_type,
            tokenizer_model=dataset.tokenizer_model,
            vocab_file=dataset.vocab_file,
            merge_file=dataset.merge_file,
            vocab_size=dataset.vocab_size,
            vocab_extra_ids=dataset.vocab_extra_ids,
            tokenizer_sentencepiece_legacy=dataset.tokenizer_sentencepiece_legacy,
            tokenizer_sentencepiece_ignore_extra_whitespaces=(
                dataset.tokenizer_sentencepiece_ignore_extra_whitespaces
            ),
            null_tokenizer_eod_id=dataset.null_tokenizer_eod_id,
            null_tokenizer_pad_id=dataset.null_tokenizer_pad_id,
            tiktoken_pattern=dataset.tiktoken_pattern,
            tiktoken_num_special_tokens=dataset.tiktoken_num_special_tokens,
            tiktoken_special_tokens=dataset.tiktoken_special_tokens,
            tokenizer_use_fast=dataset.tokenizer_use_fast,
            trust_remote_code=dataset.trust_remote_code,
            sft_tokenizer_prompt_format=dataset.sft_tokenizer_prompt_format,
        )
    )
