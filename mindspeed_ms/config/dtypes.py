# SPDX-License-Identifier: Apache-2.0
"""Names of data types in configurations; ``backend.memory.dtype_of`` gives MindSpore's."""

from __future__ import annotations

from typing import Literal, TypeAlias

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]
"""Annotation of a field that holds the name of a floating-point type."""

FLOAT32: DType = "float32"
BFLOAT16: DType = "bfloat16"
FLOAT16: DType = "float16"

_SPELLINGS: dict[str, DType] = {
    "float32": FLOAT32,
    "fp32": FLOAT32,
    "float": FLOAT32,
    "bfloat16": BFLOAT16,
    "bf16": BFLOAT16,
    "float16": FLOAT16,
    "fp16": FLOAT16,
    "half": FLOAT16,
}


def parse_dtype(value: object) -> DType:
    """Name of a data type, from any of its usual spellings or a type object of a library.

    Accepts ``float32|fp32|bfloat16|bf16|float16|fp16|half``, the same names with a ``torch.`` or
    ``mindspore.`` prefix, as found in saved Megatron arguments, and MindSpore's types.

    Raises:
        ValueError: the value names no floating-point type that training uses.

    """
    found = _SPELLINGS.get(str(value).strip().lower().rpartition(".")[2])
    if found is None:
        given = " ".join(f"{value!r:.100}".split())
        raise ValueError(f"{given} is not a data type; use float32, bfloat16 or float16")
    return found


def dtype_bytes(dtype: DType) -> int:
    """Bytes of one element."""
    return 4 if dtype == FLOAT32 else 2
