# SPDX-License-Identifier: Apache-2.0
"""Parts of the Ascend path that MindSpore's own CPU kernels can run; see test_ascend_on_cpu.py."""

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest

from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops import ascend
from mindspeed_ms.ops.ascend.dropout import kept_words
from mindspeed_ms.ops.ascend.dropout import philox_words as device_words
from mindspeed_ms.ops.portable.dropout import keep_scale_of_words, philox_words

RNG = np.random.RandomState(3)


def test_philox_on_the_device_draws_the_same_words():
    for seed, offset, count in [(0, 0, 9), (2**63 + 12345, 2**35 + 3, 1001), (77, 5, 1)]:
        got = device_words(seed, offset, count).asnumpy()
        assert np.array_equal(got, philox_words(seed, offset, count).astype(np.int64))


def test_dropout_words_by_place_are_drawn_on_the_device():
    words = RNG.randint(0, 2**40, 50)
    got = kept_words(0.4, 2**60 + 3, words).asnumpy()
    want = keep_scale_of_words(0.4, 2**60 + 3, words)
    assert np.array_equal(got, want > 0)


def test_attention_dropout_needs_whole_bytes_of_mask_bits():
    q, k, v = (ref.tensor(RNG.randn(4, 1, 2, 16), ms.bfloat16) for _ in range(3))
    with pytest.raises(ValueError, match="multiple of 8"):
        ref.attention_of(ascend)(
            q, k, v, scale=1.0, causal=True, dropout_p=0.5, generator=Generator(1)
        )
