# SPDX-License-Identifier: Apache-2.0
"""Shared objects that were compiled from C++ beside them, and whether they still fit.

A source tree that is brought up to date keeps the kernels that were compiled before; called with
the arguments of today they would write where they should not.
"""

import ctypes
import zlib
from pathlib import Path


def sources_digest(folder: Path) -> str:
    """Checksum of the names and contents of a folder's C++ sources; empty where it has none."""
    value = 0
    paths = sorted(path for path in folder.glob("*") if path.suffix in (".cpp", ".h"))
    for path in paths:
        value = zlib.crc32(path.name.encode() + b"\0" + path.read_bytes(), value)
    return f"sources-{value:08x}" if paths else ""


def open_library(path: Path) -> ctypes.CDLL:
    """A shared object whose sources, if there are any, are those in ``csrc`` beside it.

    Raises:
        OSError: it cannot be loaded on this machine, or was built from other sources.
        AttributeError: it does not say what it was built from.
    """
    library = ctypes.CDLL(str(path))
    library.built_from.restype = ctypes.c_char_p
    now = sources_digest(path.parent / "csrc")
    if now and library.built_from().decode() != now:
        raise OSError(f"it was built from other sources than those in {path.parent / 'csrc'}")
    return library
