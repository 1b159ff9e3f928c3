# SPDX-License-Identifier: Apache-2.0
"""Positions and masks of packed documents against a literal definition."""

import numpy as np
import pytest
from mindspore import Tensor

from mindspeed_ms.legacy.model.eos_mask import EosMask


def _reference(ids, eod, reset):
    batch, length = ids.shape
    mask = np.zeros((batch, length, length), bool)
    positions = np.tile(np.arange(length), (batch, 1))
    for row in range(batch):
        for query in range(length):
            for key in range(length):
                crosses = eod in ids[row, key:query]
                mask[row, query, key] = key > query or crosses
        if reset:
            start = 0
            for index in range(length):
                positions[row, index] = index - start
                if ids[row, index] == eod:
                    start = index + 1
    return positions, mask


@pytest.mark.parametrize("eod", [0, 3])
@pytest.mark.parametrize("reset", [False, True])
def test_equals_the_definition(eod, reset):
    ids = np.random.default_rng(eod).integers(0, 5, (3, 17)).astype(np.int32)
    positions, mask = EosMask(3, 17, eod, reset)(Tensor(ids))
    expected_positions, expected_mask = _reference(ids, eod, reset)
    np.testing.assert_array_equal(positions.asnumpy(), expected_positions)
    np.testing.assert_array_equal(mask.asnumpy(), expected_mask)


def test_positions_are_exact_beyond_2048():
    ids = np.ones((1, 5001), np.int32)
    ids[0, 7] = 0
    positions, _ = EosMask(1, 5001, 0, True)(Tensor(ids))
    assert positions.asnumpy()[0, -1] == 5001 - 9
    assert np.issubdtype(positions.asnumpy().dtype, np.integer)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="was built for"):
        EosMask(2, 4, 0, False)(Tensor(np.zeros((2, 5), np.int32)))
