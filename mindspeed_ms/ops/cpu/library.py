# SPDX-License-Identifier: Apache-2.0
"""Finds, loads and describes the native library.

The build makes one shared object per instruction set from the same sources; the best one that this
CPU can run is loaded. No name of the library is visible to other libraries of the process.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms

from mindspeed_ms.backend import device, env
from mindspeed_ms.files.native_library import open_library
from mindspeed_ms.ops.cpu import products

_LEVELS: dict[str, frozenset[str]] = {
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"}),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "generic": frozenset(),
}
"""Instruction sets, best first, and the CPU flags each one needs."""

_FIX = (
    "install a C++17 compiler with OpenMP (g++) and run `pip install .` or "
    "`python setup.py build_ext --inplace` in the source tree"
)
_COST = (
    "the portable NumPy kernels are used: a training step on two threads takes about twice as long"
)

STORAGE = {ms.float32: 0, ms.bfloat16: 1, ms.float16: 2}
"""Codes of the storage types, as in csrc/common.h."""

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_KINDS = {
    "i": _INT,
    "p": _POINTER,
    "n": _LONG,
    "f": _FLOAT,
    "u": ctypes.c_uint64,
    "w": ctypes.c_uint32,
}

_SIGNATURES = {
    "set_threads": "i",
    "get_threads": "",
    "set_external_gemm": "uu",
    "use_tiles": "i",
    "linear_forward": "ippppnnn",
    "linear_few_rows": "ippppnnn",
    "quantize_rows": "ipnnpp",
    "linear_dgrad": "ipppnnn",
    "linear_wgrad": "ipppnnn",
    "linear_wgrad_accumulate": "ipppnnn",
    "grouped_linear_forward": "ippppinnn",
    "grouped_linear_dgrad": "ippppinnn",
    "grouped_linear_wgrad_accumulate": "ippppinnn",
    "combine_rows_forward": "ippppnnn",
    "combine_rows_backward": "ippppppnnnn",
    "bias_grad": "ippnn",
    "norm_forward": "ippppppnnf",
    "norm_backward": "ippppppppnn",
    "activation_forward": "iipppnn",
    "activation_backward": "iipppppnn",
    "gated_forward": "iipppnnff",
    "gated_backward": "iipppppnnff",
    "map_forward": "iippnf",
    "map_backward": "iipppnf",
    "rotary": "ippppnnnnnnii",
    "softmax_forward": "ipppnnnnif",
    "softmax_backward": "ipppnnf",
    "dropout": "ippppnnuuwf",
    "attention_forward": "ippppppp",
    "attention_accumulate": "ippppppp",
    "attention_backward": "i" + "p" * 10 + "ip",
    "attention_decode": "ippppp",
    "decode_layers": "ppnp",
    "decode_head": "ipnppp",
    "sum_over_ranks": "ppn",
    "gather_over_ranks": "ppnp",
    "attention_sinks_grad": "ipppppnnn",
    "ce_max": "ippnn",
    "ce_sum": "ippppp" + "nnn",
    "ce_sum_logits": "ippnn",
    "ce_backward": "ipppppp" + "nnnff",
    "embedding_forward": "ipppnnnn",
    "embedding_accumulate": "ipppnnnn",
    "adamw": "ppppn" + "f" * 9,
    "axpy": "ippnf",
    "scale": "pnf",
    "zero": "pn",
    "add": "ipppn",
    "l2_norm_squared": "ipn",
    "count_zeros": "ipn",
    "copy_cast": "iippn",
    "split_qkv": "ppppnnnn",
    "join_qkv": "ppppnnnn",
    "keep_freed_memory": "",
    "measure_attention": "i",
    "attention_seconds": "i",
}
"""Argument kinds of every entry point; the result is nothing unless listed below."""

_RESULTS = {
    "get_threads": _INT,
    "set_external_gemm": _INT,
    "use_tiles": _INT,
    "l2_norm_squared": ctypes.c_double,
    "count_zeros": _LONG,
    "attention_seconds": ctypes.c_double,
}

_SETTINGS = frozenset(
    "set_threads get_threads set_external_gemm use_tiles keep_freed_memory measure_attention "
    "attention_seconds".split()
)

SIZE_ARGUMENTS = {
    name: tuple(index for index, kind in enumerate(kinds) if kind == "n")
    for name, kinds in _SIGNATURES.items()
    if name not in _SETTINGS
}
"""Entry points that compute, with the places of their sizes among the arguments."""


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of this CPU (empty where the system does not list them)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def candidates(flags: frozenset[str], folder: Path) -> list[tuple[str, Path]]:
    """(level, file) of every built library that a CPU with ``flags`` can run, best first."""
    return [
        (level, path)
        for level, needed in _LEVELS.items()
        if needed <= flags
        for path in sorted(folder.glob(f"_kernels_{level}*.so"))
    ]


class Library:
    """The loaded native library; its entry points are attributes."""

    def __init__(self, level: str, path: Path) -> None:
        self.level = level
        self.path = path
        self.products = products.OWN
        loaded = open_library(path)
        for name, kinds in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes = [_KINDS[kind] for kind in kinds]
            function.restype = _RESULTS.get(name)
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Entry points are set by the constructor; any other name is a mistake."""
        raise AttributeError(f"the native library has no entry point {name!r}")

    def use_products(self, chosen: products.Products) -> None:
        """Compute matrix products as ``chosen``, without what does not work here."""
        works = bool(self.set_external_gemm(chosen.sgemm, chosen.bgemm))
        self.products = replace(
            chosen,
            tiles=self.use_tiles(chosen.tiles),
            bgemm=chosen.bgemm if works else 0,
        )


class _Loading:
    """What a search for the library gave."""

    def __init__(self, folder: Path) -> None:
        self.library: Library | None = None
        self.reason = ""
        found = candidates(cpu_flags(), folder)
        if not found:
            self.reason = (
                f"no native library for this {platform.machine()} CPU in {folder}; {_COST}; {_FIX}"
            )
        for level, path in found:
            try:
                self.library = Library(level, path)
            except (OSError, AttributeError) as error:
                self.reason = f"native library {path.name} does not load ({error}); {_COST}; {_FIX}"
            else:
                self.reason = ""
                return


def wanted_threads() -> int:
    """Threads of this rank by OMP_NUM_THREADS; unset: one per core."""
    return env.get_int("OMP_NUM_THREADS") or device.cores()


@functools.lru_cache(maxsize=1)
def loading() -> _Loading:
    """The search, done once; a library that loads computes with OMP_NUM_THREADS threads.

    But never with more than there are cores: they would only wait for each other.
    """
    result = _Loading(Path(__file__).parent)
    if result.library is not None:
        result.library.set_threads(min(wanted_threads(), device.cores()))
        result.library.keep_freed_memory()
        result.library.use_products(
            products.find(env.get("MINDSPEED_MS_GEMM", "auto") or "auto", cpu_flags())
        )
    return result


def library() -> Library:
    """The loaded library.

    Raises:
        RuntimeError: it is missing or does not load; the message says why and what to do.
    """
    found = loading()
    if found.library is None:
        raise RuntimeError(found.reason)
    return found.library


class _EntryPoints:
    """The entry points as attributes, each looked up once: a kernel's call costs no more than that.

    The library is loaded by the first use of one, not by the import of this module: loading it
    reads the number of threads and takes OpenBLAS' own threads from the process.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in _SIGNATURES:
            raise AttributeError(f"the native library has no entry point {name!r}")
        function = getattr(library(), name)
        setattr(self, name, function)
        return function


native = _EntryPoints()


def set_num_threads(count: int) -> None:
    """Threads that the kernels use from now on."""
    library().set_threads(count)


def num_threads() -> int:
    """Threads that the kernels use."""
    return library().get_threads()
