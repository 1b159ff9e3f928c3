# SPDX-License-Identifier: Apache-2.0
"""What tests of the configuration sections share."""

from mindspeed_ms.config import (
    TransformerConfig,
)
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_dict

SIZES = {
    "vocab_size": 512,
    "num_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "seq_length": 64,
}


def model(**changes):
    return TransformerConfig(**{**SIZES, "compute_dtype": "float32", **changes})


def whole(model_changes=None, **sections):
    """Build an AllConfig from plain changes per section."""
    document = {"model_config": {**SIZES, "compute_dtype": "float32", **(model_changes or {})}}
    return init_configs_from_dict({**document, **sections})
