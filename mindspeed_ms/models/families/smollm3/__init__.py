# SPDX-License-Identifier: Apache-2.0
"""SmolLM 3: Llama that rotates in three of four layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Fields, Heads, value_of
from mindspeed_ms.models.families.window import FULL, SLIDING, PatternOfWindows, known_types


@dataclass(frozen=True, slots=True)
class UnrotatedLayers:
    """Layers that do not rotate, and windows, which these have where ``layer_types`` is silent.

    Attributes:
        every: every n-th layer does not rotate in a file that names none.
    """

    every: int = 4

    @property
    def keys(self) -> frozenset[str]:
        """Of both."""
        names = {"no_rope_layers", "no_rope_layer_interval", "use_sliding_window"}
        return frozenset(names | {"layer_types", "sliding_window"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Which layers rotate, which have a window.

        Raises:
            ValueError: a list that is shorter than the model, or windows without a width.
        """
        number = value_of(theirs, "num_hidden_layers")
        every = value_of(theirs, "no_rope_layer_interval", self.every)
        rotates = list(theirs.get("no_rope_layers") or ())
        rotates = rotates or [(layer + 1) % every != 0 for layer in range(number)]
        width = theirs.get("sliding_window")
        has_windows = bool(theirs.get("use_sliding_window")) and width is not None
        types = known_types(theirs) or [
            SLIDING if has_windows and not rotated else FULL for rotated in rotates[:number]
        ]
        for name, entries in (("no_rope_layers", rotates), ("layer_types", types)):
            if len(entries) < number:
                raise ValueError(
                    f"config.json has {name} of {len(entries)} entries for {number} layers; give "
                    "one for each"
                )
        if SLIDING in types and width is None:
            raise ValueError(
                f"config.json has {SLIDING} among its layer_types, but no sliding_window; give one"
            )
        silent = tuple(int(not rotated) for rotated in rotates[:number])
        fields: Fields = {"model_config.no_rope_freq": silent} if any(silent) else {}
        return fields | PatternOfWindows(0, None).read({**theirs, "layer_types": types[:number]})

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Lists of both."""
        model = config.model_config
        windows = PatternOfWindows(0, None).write(config)
        return {
            "no_rope_layers": [int(model.rotates(layer)) for layer in range(model.num_layers)],
            "use_sliding_window": SLIDING in windows["layer_types"],
            **windows,
        }


FAMILY = Family(
    name="smollm3",
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(
        llama.ATTENTION_BIAS,
        Biases("mlp_bias", ("model_config.mlp_has_bias",)),
        UnrotatedLayers(),
        heads=Heads(default_groups=4),
        rope=Rope(2000000.0),
        is_tied=True,
    ),
    places=Decoder(),
    neutral=frozenset({"pretraining_tp", "max_window_layers"}),
    presets={
        "smollm3_3b": {
            "model_type": "smollm3",
            "vocab_size": 128256,
            "num_hidden_layers": 36,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "no_rope_layers": [1, 1, 1, 0] * 9,
            "max_position_embeddings": 65536,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5000000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 128000,
            "eos_token_id": 128012,
        }
    },
)
