# SPDX-License-Identifier: Apache-2.0
"""What numbers in a command line or a file may make of memory has an end that is told."""

import numpy as np
import pytest

from mindspeed_ms.data import gpt_indices
from mindspeed_ms.data.tokenizers import gap_tokens


def test_the_order_of_too_many_samples_is_refused_before_it_is_made():
    lengths, documents = np.full(8, 1000, np.int32), np.arange(8, dtype=np.int32)
    with pytest.raises(ValueError, match="passes over the data.*GB left; shorten training"):
        gpt_indices.build_gpt_indices(
            lengths, documents, 1 << 45, sequence_length=32, random_seed=1
        )
    built = gpt_indices.build_gpt_indices(
        lengths, documents, 300, sequence_length=32, random_seed=1
    )
    assert len(built.shuffle_index) >= 300


@pytest.mark.parametrize("count", [-1, gap_tokens.MOST + 1, 1 << 63, "x", None, 1.5])
def test_sentinels_have_a_limit(count):
    with pytest.raises(ValueError, match="vocab_extra_ids is .*; it must be a whole number"):
        gap_tokens.sentinels(count, "vocab_extra_ids")
    assert gap_tokens.sentinels(2) == ["<extra_id_0>", "<extra_id_1>"]
