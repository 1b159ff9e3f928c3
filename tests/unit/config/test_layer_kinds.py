# SPDX-License-Identifier: Apache-2.0
"""Rules of kinds of attention, each broken in one way."""

import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms.config import LoraConfig

DELTA = {
    "experimental_attention_variant": "gated_delta_net",
    "linear_attention_freq": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
BAD = {
    "no list": ({"linear_attention_freq": None}, "needs linear_attention_freq"),
    "another length": ({"linear_attention_freq": (1, 0, 1, 0, 1)}, "has 5 entries"),
    "another activation": ({"hidden_act": "gelu"}, "use swiglu or silu"),
    "no multiple": ({"linear_num_value_heads": 3}, "must be a multiple"),
    "adapters": ({"lora_config": LoraConfig(use_lora=True)}, "and use_lora do not go together"),
    "two norms": ({"qk_l2_norm": True, "qk_layernorm": True}, "and qk_layernorm do not"),
    "latent": (
        {"qk_l2_norm": True, "multi_latent_attention": True},
        "multi_latent_attention do",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_go_together_is_refused(name):
    changes, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        model_config(LLAMA, NO_BIAS, {**DELTA, **changes})


def test_a_number_leaves_every_nth_layer_its_keys():
    config = model_config(LLAMA, NO_BIAS, {**DELTA, "num_layers": 4})
    assert [config.is_linear(layer) for layer in range(5)] == [True, False, True, False, True]
    listed = model_config(
        LLAMA, NO_BIAS, {**DELTA, "num_layers": 2, "linear_attention_freq": (0, 1)}
    )
    assert [listed.is_linear(layer) for layer in range(3)] == [False, True, False]
