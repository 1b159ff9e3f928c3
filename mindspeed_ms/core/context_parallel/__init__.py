# SPDX-License-Identifier: Apache-2.0
"""Context parallelism: the ranks of a group share every sequence.

``ContextParallel`` says which tokens a rank holds, and ``context_parallel_attention`` lets each of
its queries see the keys of all ranks. Everything else in a model works on tokens one by one.
"""

from __future__ import annotations

from mindspeed_ms import old_names
from mindspeed_ms.core.context_parallel.attention import context_parallel_attention
from mindspeed_ms.core.context_parallel.exchange import (
    count_over_sequence,
    gather_tokens,
    sum_over_sequence,
)
from mindspeed_ms.core.context_parallel.layout import ContextParallel, context_parallel
from mindspeed_ms.core.context_parallel.random import share_of_draws

__all__ = [
    "ContextParallel",
    "context_parallel",
    "context_parallel_attention",
    "count_over_sequence",
    "gather_tokens",
    "share_of_draws",
    "sum_over_sequence",
]

__getattr__ = old_names.of(__name__)
