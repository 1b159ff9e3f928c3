# SPDX-License-Identifier: Apache-2.0
"""What a case of the kernel sets is, and how one is made."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import mindspore as ms
import numpy as np
import ops_reference as ref
from mindspore import Tensor, mint

from mindspeed_ms.backend import autograd

Results = dict[str, tuple[np.ndarray, str]]
"""Values in float64 and the type they were stored in, by name."""

ROUNDING = {ms.float32: 2.0**-24, ms.bfloat16: 2.0**-8, ms.float16: 2.0**-11}
"""Largest relative error of storing a number."""

FLOATS = tuple(ROUNDING)
HALVES = (ms.bfloat16, ms.float16)


@dataclass(frozen=True, slots=True)
class Case:
    """One call of a kernel set."""

    name: str
    run: Callable[[ModuleType, np.random.RandomState], Results]

    launches: frozenset[str]
    """Primitives that must run on the Ascend path."""

    tolerance: float
    """Largest error relative to the largest wanted value of an array."""

    def results(self, kernels: ModuleType) -> Results:
        """Run it; every kernel set sees the same inputs."""
        autograd.enable()
        return self.run(kernels, np.random.RandomState(zlib.crc32(self.name.encode())))


CASES: list[Case] = []


def add(name, dtype, run, launches=(), roundings=4):
    """``roundings``: of the storage type, along the longest way from an input to a result."""
    # Sums of fp32 numbers are formed in another order than in the definition.
    slack = 4 if dtype == ms.float32 else 1
    tolerance = slack * roundings * ROUNDING[dtype]
    CASES.append(Case(f"{name}-{str(dtype).lower()}", run, frozenset(launches), tolerance))


def kept(**tensors: Tensor | None) -> Results:
    """What a case hands back."""
    return {name: (ref.values(t), str(t.dtype)) for name, t in tensors.items() if t is not None}


def differentiated(call, arrays, dtype, random, make=ref.tensor):
    """Results and gradients of ``call(*tensors)``; None among the arrays stays None."""
    leaves = [None if a is None else ref.leaf(make(a, dtype)) for a in arrays]
    outputs = call(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [make(random.randn(*y.shape), y.dtype) if y.shape else None for y in outputs]
    autograd.backward(outputs, grads)
    results = {f"y{i}": y for i, y in enumerate(outputs)}
    for i, one in enumerate(leaves):
        results[f"d{i}"] = None if one is None else autograd.get_grad(one)
        assert one is None or results[f"d{i}"] is not None, f"input {i} got no gradient"
    return kept(**results)


def differentiable(name, op, shapes, launches, *, dtypes=FLOATS, roundings=4, **options):
    """``op(kernels)(*tensors)`` for every type, dense and strided."""
    for dtype in dtypes:
        for make in (ref.tensor, ref.transposed):
            strided = make is ref.transposed

            def run(kernels, random, dtype=dtype, make=make):
                arrays = [None if shape is None else random.randn(*shape) for shape in shapes]
                # A vector has no other layout.
                rest = lambda a, d: make(a, d) if a.ndim > 1 else ref.tensor(a, d)  # noqa: E731
                return differentiated(op(kernels), arrays, dtype, random, rest)

            add(f"{name}{'-strided' if strided else ''}", dtype, run, launches, roundings)


def in_flat_buffer(random, shape, dtype=ms.float32):
    """(a flat buffer, a view of its middle), as gradients and parameters lie in training."""
    count = int(np.prod(shape))
    flat = ref.tensor(random.rand(count + 11), dtype)
    return flat, mint.narrow(flat, 0, 5, count).reshape(shape)
