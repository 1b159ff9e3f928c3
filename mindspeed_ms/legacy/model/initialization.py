# SPDX-License-Identifier: Apache-2.0
"""Where in the stream of initial weights the parts of a pipeline stage begin."""

from __future__ import annotations

from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.tensor_parallel.random import seek_initialization
from mindspeed_ms.models.model import ModelSpec


class StageDraws:
    """Gives the parts of a pipeline stage the initial weights they have in the one-stage model.

    Weights come from one stream in the order of the whole model. A stage that lacks the parts
    before its own moves on to where they would have left the stream. With
    ``use_cpu_initialization`` each stage draws its own parts from a stream of its own, as Megatron
    does, and nothing is skipped.

    Args:
        spec: the whole model, which knows how much each part draws.
        use_cpu_initialization: the option.
    """

    def __init__(self, spec: ModelSpec, use_cpu_initialization: bool) -> None:
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        self._spec, self._is_active = spec, stages > 1 and not use_cpu_initialization

    def begin_layer(self, index: int) -> None:
        """Move to the weights of a layer, counted over the whole model."""
        self._seek(self._spec.layer_starts[index])

    def begin_further_layers(self) -> None:
        """Move to the weights behind the last layer: of learned queries, or of further tokens."""
        self._seek(self._spec.layer_starts[-1])

    def begin_head(self) -> None:
        """Move to the weights of the head."""
        self._seek(self._spec.head_start)

    def _seek(self, position: int) -> None:
        if self._is_active:
            seek_initialization(position)
