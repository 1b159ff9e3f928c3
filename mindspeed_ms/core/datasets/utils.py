# SPDX-License-Identifier: Apache-2.0
"""Megatron's path of ``mindspeed_ms.data.utils``."""

from mindspeed_ms.data.utils import (
    Split,
    convert_split_vector_to_split_matrix,
    get_blend_from_list,
    normalize,
    parse_and_normalize_split,
    split_bounds,
)

__all__ = [
    "Split",
    "convert_split_vector_to_split_matrix",
    "get_blend_from_list",
    "normalize",
    "parse_and_normalize_split",
    "split_bounds",
]
