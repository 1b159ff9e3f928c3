# SPDX-License-Identifier: Apache-2.0
"""Lists of numbers as MindSpore tensors; loaded only when somebody asks for them."""

from __future__ import annotations

from typing import Any

import mindspore
import numpy as np


def tensor(values: Any) -> mindspore.Tensor:
    """A tensor of int32, which is what models take ids in."""
    return mindspore.Tensor(np.asarray(values, dtype=np.int32))


def to_lists(value: Any) -> Any:
    """Numbers of a tensor as nested lists; anything else as it is."""
    return value.asnumpy().tolist() if isinstance(value, mindspore.Tensor) else value
