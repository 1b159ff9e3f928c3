# SPDX-License-Identifier: Apache-2.0
"""The guide's path of ``mindspeed_ms.engine.datasets``."""

from mindspeed_ms.engine.datasets import (
    DEFAULT_SPLIT,
    MODEL_INPUTS,
    EndlessLoader,
    SharedLoader,
    build_pretraining_data_loader,
    get_batch,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
    get_blend_and_blend_per_split,
    get_train_valid_test_num_samples,
    gpt_dataset_config,
    is_data_needed_on_rank,
    is_dataset_built_on_rank,
    tokenizer_of,
    train_valid_test_datasets_provider,
)

__all__ = [
    "DEFAULT_SPLIT",
    "EndlessLoader",
    "MODEL_INPUTS",
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
    "tokenizer_of",
    "train_valid_test_datasets_provider",
]
