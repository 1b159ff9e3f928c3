"""Data types in configurations.

They are MindSpore dtype objects in memory, short names in YAML and on the command line.
"""

from __future__ import annotations

from typing import TypeAlias

from mindspore.common import dtype as mstype

DType: TypeAlias = mstype.Type
"""Annotation of a field that holds a floating-point MindSpore dtype, for example
``mstype.bfloat16``.
"""

_DTYPE_BY_NAME = {
    "float32": mstype.float32,
    "fp32": mstype.float32,
    "float": mstype.float32,
    "bfloat16": mstype.bfloat16,
    "bf16": mstype.bfloat16,
    "float16": mstype.float16,
    "fp16": mstype.float16,
    "half": mstype.float16,
}
_NAME_BY_DTYPE = {
    mstype.float32: "float32",
    mstype.bfloat16: "bfloat16",
    mstype.float16: "float16",
}


def is_dtype(value: object) -> bool:
    """Tell whether a value is a MindSpore dtype."""
    return isinstance(value, mstype.Type)


def parse_dtype(value: object) -> DType:
    """Turn a dtype or any of its usual spellings into the MindSpore dtype.

    Accepts MindSpore dtypes, ``float32|fp32|bfloat16|bf16|float16|fp16|half`` and the same names
    with a ``torch.`` or ``mindspore.`` prefix, as found in saved Megatron arguments.

    Raises:
        ValueError: the value names no floating-point type that training uses.

    """
    if isinstance(value, str):
        found = _DTYPE_BY_NAME.get(value.strip().lower().rpartition(".")[2])
        if found is not None:
            return found
    elif is_dtype(value) and value in _NAME_BY_DTYPE:
        return value
    raise ValueError(f"{value!r} is not a data type; use float32, bfloat16 or float16")


def dtype_name(dtype: DType) -> str:
    """Return the name under which a dtype is written to YAML."""
    return _NAME_BY_DTYPE[dtype]
