# SPDX-License-Identifier: Apache-2.0
"""Pre-train a GPT model: Megatron's flags, or YAML files with ``--yaml``.

msrun --worker_num 4 --local_worker_num 4 --join True pretrain_gpt.py --yaml configs/tiny_gpt.yaml
"""

import gc

gc.disable()  # while two thousand modules load: the collector finds nothing and takes its time
from mindspeed_ms.engine.current_config import get_all_config  # noqa: E402
from mindspeed_ms.legacy.model import GPTModel, ModelType  # noqa: E402
from mindspeed_ms.training import pretrain  # noqa: E402

gc.enable()


def model_provider(pre_process: bool = True, post_process: bool = True) -> GPTModel:
    """This rank's part of the configured model."""
    return GPTModel(
        get_all_config().model_config, pre_process=pre_process, post_process=post_process
    )


def main() -> None:
    """Train as the command line says."""
    gc.freeze()  # modules stay: later collections, and the one at the end, need not look at them
    pretrain(
        train_valid_test_datasets_provider=None,
        model_provider_func=model_provider,
        model_type=ModelType.encoder_or_decoder,
    )


if __name__ == "__main__":
    main()
