# SPDX-License-Identifier: Apache-2.0
"""Cases of experts and of columns."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import ops_reference as ref
from mindspore import Tensor
from op_plugin.harness import FLOATS, add, differentiable, in_flat_buffer, kept


def _chosen(shape, experts):
    """Different columns per row, some of them none (-1)."""
    random = np.random.RandomState(6)
    columns = np.array([random.permutation(experts)[: shape[1]] for _ in range(shape[0])])
    columns[random.rand(*shape) < 0.3] = -1
    return columns.astype(np.int32)


def experts():
    fp32 = {"dtypes": (ms.float32,)}
    table, few = (7, 6), _chosen((7, 2), 6)
    places = np.array([[2, 0], [-1, 4], [1, 3], [-1, -1]], np.int32)
    probs = np.random.RandomState(7).rand(4, 2)
    for function, launches in (
        ("softmax", ("Softmax", "SoftmaxBackward")),
        ("sigmoid", ("Sigmoid", "SigmoidGrad")),
    ):
        differentiable(
            f"router_scores-{function}",
            lambda m, function=function: lambda x: m.router_scores(x, function),
            (table,),
            launches,
            **fp32,
        )
    differentiable(
        "normalized_rows",
        lambda m: lambda x: m.normalized_rows(m.router_scores(x, "softmax")),
        (table,),
        ("SumExt", "Div"),
        **fp32,
    )
    differentiable(
        "take_columns",
        lambda m: lambda x: m.take_columns(x, Tensor(few)),
        (table,),
        ("GatherD", "GatherDGradV2"),
        **fp32,
    )
    differentiable(
        "weighted_total",
        lambda m: lambda x: m.weighted_total(x, ref.tensor(np.arange(42.0).reshape(table) - 20)),
        (table,),
        ("SumExt",),
        **fp32,
    )
    differentiable(
        "squared_logsumexp",
        lambda m: m.squared_logsumexp,
        (table,),
        ("ReduceMax", "MeanExt"),
        **fp32,
    )
    differentiable(
        "combine_rows",
        lambda m: lambda rows: m.combine_rows(rows, ref.tensor(probs), Tensor(places)),
        ((6, 5),),
        ("Embedding", "EmbeddingDenseBackward"),
    )
    differentiable(
        "combine_rows-probabilities",
        lambda m: lambda p: m.combine_rows(ref.tensor(np.eye(6, 5)), p, Tensor(places)),
        ((4, 2),),
        ("Embedding",),
        **fp32,
    )
    for groups in ((None, None, None), (3, 2, 1), (3, 2, 2)):

        def largest(kernels, random, groups=groups):
            return kept(
                columns=kernels.largest_columns(ref.tensor(random.randn(9, 12)), 4, *groups)
            )

        add(f"largest_columns-{groups[0]}groups-{groups[2]}", ms.float32, largest, ("TopkExt",))
    for dtype in FLOATS:
        for counts in ((3, 0, 4), (7,)):

            def weight_grads(kernels, random, dtype=dtype, counts=counts):
                x, dy = (ref.tensor(random.randn(7, width), dtype) for width in (5, 4))
                buffers = [in_flat_buffer(random, (4, 5)) for _ in counts]
                views = [view for _, view in buffers]
                kernels.grouped_linear_wgrad_accumulate(dy, x, views, counts)
                return kept(**{f"grad{i}": flat for i, (flat, _) in enumerate(buffers)})

            launches = ("MatMulExt", "InplaceAddExt")
            add(f"grouped_linear_wgrad-{len(counts)}groups", dtype, weight_grads, launches)


def columns():
    differentiable(
        "split_columns", lambda m: lambda x: m.split_columns(x, (3, 1, 4)), ((5, 2, 8),), ()
    )
    differentiable(
        "join_columns",
        lambda m: lambda a, b: m.join_columns((a, b), 2),
        ((5, 3, 4), (5, 1, 2)),
        ("Concat",),
    )
