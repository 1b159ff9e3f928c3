# SPDX-License-Identifier: Apache-2.0
"""Weights that follow from a tensor's name and shape: what was recorded needs none of its own."""

import zlib

import numpy as np


def values(name, shape):
    """Numbers of a tensor: factors near 1, biases near 0, matrices that keep the size of rows."""
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    drawn = stream.standard_normal(shape)
    if len(shape) == 1:
        is_factor = name.endswith("weight") and "bias" not in name
        return (0.2 * drawn + is_factor).astype(np.float32)
    return (drawn * 0.8 / np.sqrt(shape[-1])).astype(np.float32)
