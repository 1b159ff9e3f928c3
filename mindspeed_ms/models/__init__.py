# SPDX-License-Identifier: Apache-2.0
"""The model as a description without a framework: its parts, their parameters and their costs.

``gpt_spec`` makes it from a configuration. Cells create their parameters from it, the planner sums
it, checkpoints take names and splits from it.
"""

from mindspeed_ms.models.gpt import gpt_spec
from mindspeed_ms.models.model import ModelSpec
from mindspeed_ms.models.parameter import Init, ParamSpec

__all__ = ["Init", "ModelSpec", "ParamSpec", "gpt_spec"]
