# SPDX-License-Identifier: Apache-2.0
"""Weights of the hub that are stored in fewer bits, as numbers again.

=========  ==============================================================================
fp8        a byte for each number (sign, 4 bits of exponent, 3 of mantissa: E4M3 without
           infinities), times a factor for each block of rows and columns
mxfp4      half a byte for each number (E2M1, the even one in the low bits), times a
           power of two for every 32 that follow each other in a row
=========  ==============================================================================

Source: Micikevicius et al., 2022 (fp8); Rouhani et al., 2023 (mxfp4); the layouts are those of
DeepSeek V3 and of gpt-oss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FP8 = "F8_E4M3"
SCALE_SUFFIX = "_scale_inv"
"""What the name of the factors of a matrix ends in."""
BLOCKS, SCALES = "_blocks", "_scales"
"""What the names of the two parts of a matrix in mxfp4 end in."""
_GROUP = 32
"""Numbers in mxfp4 that share an exponent."""


def _fp8_values() -> Floats:
    """The number that each byte stands for."""
    bits = np.arange(256)
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    normal = np.ldexp(1.0 + mantissa / 8.0, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8.0, -6), normal)
    values = np.where((bits & 127) == 127, np.nan, values)
    return np.where(bits >= 128, -values, values).astype(np.float32)


FP8_VALUES = _fp8_values()
FP4_VALUES = np.array(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32
)


@dataclass(frozen=True, slots=True)
class BlockScales:
    """Factors of the blocks of a matrix; they are read when the first of them is needed.

    Attributes:
        columns: of the matrix.
        block: rows and columns of a block; those at the ends may be smaller.
        load: reads the factors, fp32 [blocks of rows, blocks of columns].
    """

    columns: int
    block: tuple[int, int]
    load: Callable[[], Floats]

    def decoded(self, stored: NDArray[np.uint8], first: int) -> Floats:
        """Consecutive numbers of the matrix.

        Args:
            stored: their bytes, of any shape.
            first: how many numbers of the matrix lie before them.
        """
        values, factors = FP8_VALUES[stored.reshape(-1)], self.load()
        low, end = first, first + values.size
        while low < end:  # what lies in one row of blocks
            index = low // self.columns // self.block[0]
            high = min(end, (index + 1) * self.block[0] * self.columns)
            part = values[low - first : high - first]
            factor = np.repeat(factors[index], self.block[1])[: self.columns]
            if low % self.columns == 0 == high % self.columns:
                part = part.reshape(-1, self.columns)
                part *= factor
            else:
                part *= factor[np.arange(low, high) % self.columns]
            low = high
        return values.reshape(stored.shape)


def mxfp4(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> Floats:
    """Numbers fp32 [..., 32 n] of blocks [..., n, 16] and their exponents [..., n], plus 127."""
    values = np.empty((*blocks.shape[:-1], _GROUP), np.float32)
    values[..., 0::2] = FP4_VALUES[blocks & 15]
    values[..., 1::2] = FP4_VALUES[blocks >> 4]
    exponents = scales.astype(np.int32)[..., None] - 127
    return np.ldexp(values, exponents).reshape((*blocks.shape[:-2], -1))


def block_of(quantization: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Rows and columns of the blocks of fp8; None: weights are plain, or in mxfp4.

    Args:
        quantization: ``quantization_config`` of a ``config.json``.

    Raises:
        ValueError: weights that cannot be read; says what they are, and what to do.
    """
    if not quantization:
        return None
    kind, size = quantization.get("quant_method"), quantization.get("weight_block_size")
    if kind == "mxfp4":
        return None
    if kind == "fp8" and isinstance(size, list | tuple) and len(size) == 2:
        rows, columns = size
        if all(type(one) is int and one > 0 for one in (rows, columns)):
            return rows, columns
    raise ValueError(
        f"the weights are quantized ({kind}), as quantization_config says; fp8 in blocks and mxfp4 "
        "are read: save plain weights with transformers (model.dequantize(), then "
        "save_pretrained), or take the folder that is not quantized"
    )
