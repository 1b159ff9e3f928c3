# SPDX-License-Identifier: Apache-2.0
"""``mindspeed-ms train`` and ``plan``: what ``pretrain_gpt.py`` does, from any folder."""

from __future__ import annotations

import sys

from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.legacy.model import GPTModel, ModelType
from mindspeed_ms.training import pretrain


def model_provider(pre_process: bool = True, post_process: bool = True) -> GPTModel:
    """This rank's part of the configured model."""
    return GPTModel(
        get_all_config().model_config, pre_process=pre_process, post_process=post_process
    )


def main() -> None:
    """Train as the command line says."""
    pretrain(
        train_valid_test_datasets_provider=None,
        model_provider_func=model_provider,
        model_type=ModelType.encoder_or_decoder,
    )


def plan() -> None:
    """Print what a command line would need; train nothing."""
    sys.argv[1:1] = ["--dry-run"]
    main()
