# SPDX-License-Identifier: Apache-2.0
"""Where matrix products are computed: our own loops, the tile unit, or a library of the process.

fp32 stays in our own loops where there is AVX-512 (they are tuned for 32 vector registers) and goes
to NumPy's OpenBLAS on other CPUs. bf16 and fp16 go to the tile unit (AMX) where there is one, else
bf16 to the oneDNN that MindSpore ships if the CPU multiplies bf16 itself. Foreign functions are
found without linking to them. Everything else, and every CPU or NumPy without them, uses our own
loops.

The tile unit can do fp32 too, as three bf16 numbers per number and six products (``csrc/tiles.h``),
as accurately as fp32 arithmetic. Measured on a shared virtual machine it is 1.5 to 2 times as fast
as the loops while the unit runs at full speed, and 0.8 times as fast while it runs at a quarter of
it, which there was more than half of the time: hence only on request.
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
_TILE_FLAGS = frozenset({"amx_tile", "amx_bf16"})

HALF_TYPES, ALL_TYPES = 1, 2
"""What the tile unit may be used for, as in csrc/tiles.h."""

_TILES = {"auto": HALF_TYPES, "tiles": ALL_TYPES, "vector": 0}


@dataclass(frozen=True, slots=True)
class Products:
    """Who computes products; addresses of foreign functions are 0 for none."""

    tiles: int = 0
    """What the tile unit computes: nothing, the 16-bit types (1), or all types (2)."""
    sgemm: int = 0
    """OpenBLAS ``cblas_sgemm`` with 64-bit sizes."""
    bgemm: int = 0
    """oneDNN ``dnnl_gemm_bf16bf16f32``."""

    def describe(self) -> str:
        """Who computes which type."""
        if self.tiles == ALL_TYPES:
            return "AMX tiles (fp32 as three bf16 parts)"
        single = "OpenBLAS of NumPy" if self.sgemm else "own"
        if self.tiles:
            return f"fp32 {single}, bf16 and fp16 AMX tiles"
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
    """The products to use.

    Args:
        choice: value of the variable MINDSPEED_MS_GEMM: ``auto`` for the measured choice,
            ``tiles`` for fp32 on the tile unit too, ``vector`` for the choice of a CPU without
            one, ``own`` for our own loops only.
        flags: instruction-set flags of the CPU.

    Raises:
        ValueError: an unknown choice.
    """
    if choice == "own":
        return OWN
    if choice not in _TILES:
        raise ValueError(f"MINDSPEED_MS_GEMM is {choice!r}; use auto, tiles, vector or own")
    return Products(
        tiles=_TILES[choice] if flags >= _TILE_FLAGS else 0,
        sgemm=0 if "avx512f" in flags else _openblas(),
        bgemm=_onednn() if flags & _BF16_FLAGS else 0,
    )
