# SPDX-License-Identifier: Apache-2.0
"""The process groups that the layers of a model talk over, as one object that is passed to them."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_ms.backend.base import Group
from mindspeed_ms.core import parallel_state


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessGroups:
    """Groups that contain this rank."""

    tensor: Group
    """Ranks that share each layer's matrices."""
    expert: Group
    """Ranks that share out the experts."""
    expert_tensor: Group
    """Ranks that share each expert's matrices."""
    expert_and_tensor: Group
    """Both together."""
    tensor_and_context: Group
    """Ranks that share sequences."""
    tensor_and_data: Group
    """Ranks of the same stage."""

    @classmethod
    def current(cls) -> ProcessGroups:
        """Those of the layout that ``initialize_model_parallel`` has made."""
        return cls(
            tensor=parallel_state.get_tensor_model_parallel_group(),
            expert=parallel_state.get_expert_model_parallel_group(),
            expert_tensor=parallel_state.get_expert_tensor_parallel_group(),
            expert_and_tensor=parallel_state.get_expert_tensor_and_model_parallel_group(),
            tensor_and_context=parallel_state.get_tensor_and_context_parallel_group(),
            tensor_and_data=parallel_state.get_tensor_and_data_parallel_group(
                with_context_parallel=True
            ),
        )
