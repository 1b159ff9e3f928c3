"""Arguments, initialisation, and the training loop."""

from mindspeed_ms.engine.datasets import (
    get_batch,
    get_train_valid_test_num_samples,
    train_valid_test_datasets_provider,
)
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.engine.parallel_setup import set_parallel_context, set_seed
from mindspeed_ms.training.from_args import init_configs_from_args
from mindspeed_ms.training.global_args import get_args
from mindspeed_ms.training.initialize import initialize_megatron
from mindspeed_ms.training.training import pretrain

__all__ = [
    "get_args",
    "get_batch",
    "get_train_valid_test_num_samples",
    "init_configs_from_args",
    "initialize_megatron",
    "pretrain",
    "print_rank_0",
    "set_parallel_context",
    "set_seed",
    "train_valid_test_datasets_provider",
]
