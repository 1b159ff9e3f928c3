"""Matrix products of libraries that are in the process anyway, found without linking to them.

Measured on two AVX-512 threads in fp32 (all products of a step of the reference model, best of five
in alternation): our own loops 0.92 s, NumPy's OpenBLAS 1.12 s; on one thread they are equal. So
fp32 stays here with AVX-512 (the loops are tuned for 32 vector registers) and goes to OpenBLAS on
other CPUs when NumPy ships it. bf16 goes to oneDNN where the CPU multiplies bf16 itself (1.6 to 3
times the speed of fp32). Everything else, and every CPU or NumPy without them, uses our own loops.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np

_SGEMM_NAMES = ("cblas_sgemm64_", "scipy_cblas_sgemm64_")
_SET_THREADS_NAMES = ("openblas_set_num_threads64_", "scipy_openblas_set_num_threads64_")
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, slots=True)
class Products:
    """Addresses of foreign product functions; 0 means the native library's own loops."""

    sgemm: int = 0
    """OpenBLAS ``cblas_sgemm`` with 64-bit sizes."""
    bgemm: int = 0
    """oneDNN ``dnnl_gemm_bf16bf16f32``."""

    def describe(self) -> str:
        """Which library computes which type."""
        single = "OpenBLAS of NumPy" if self.sgemm else "own"
        half = "oneDNN of MindSpore" if self.bgemm else "own"
        return f"fp32 {single}, bf16 {half}, fp16 own"


OWN = Products()


def _address(library: ctypes.CDLL, names: tuple[str, ...]) -> int:
    for name in names:
        if hasattr(library, name):
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    return 0


def _open(pattern: str, folders: tuple[Path, ...]) -> ctypes.CDLL | None:
    for folder in folders:
        for path in sorted(folder.glob(pattern)):
            try:
                return ctypes.CDLL(str(path))
            except OSError:
                continue
    return None


def _openblas() -> int:
    """Address of OpenBLAS' product, with its own threads switched off for the whole process.

    It is called from the kernels' threads; a second pool would compete for the same cores.
    """
    package = Path(np.__file__).parent
    library = _open("libopenblas64_*.so*", (package.parent / "numpy.libs", package / ".dylibs"))
    if library is None:
        return 0
    threads = _address(library, _SET_THREADS_NAMES)
    sgemm = _address(library, _SGEMM_NAMES)
    if not threads or not sgemm:
        return 0
    ctypes.CFUNCTYPE(None, ctypes.c_int)(threads)(1)
    return sgemm


def _onednn() -> int:
    library = _open("libdnnl.so*", (Path(ms.__file__).parent / "lib",))
    return 0 if library is None else _address(library, ("dnnl_gemm_bf16bf16f32",))


def find(choice: str, flags: frozenset[str]) -> Products:
    """The products to use: ``own``, or ``auto`` for the measured choice.

    Args:
        choice: value of the variable MINDSPEED_MS_GEMM.
        flags: instruction-set flags of the CPU.

    Raises:
        ValueError: an unknown choice.
    """
    if choice == "own":
        return OWN
    if choice != "auto":
        raise ValueError(f"MINDSPEED_MS_GEMM is {choice!r}; use auto or own")
    return Products(
        0 if "avx512f" in flags else _openblas(), _onednn() if flags & _BF16_FLAGS else 0
    )
