# SPDX-License-Identifier: Apache-2.0
"""Files that this process has mapped."""

from __future__ import annotations

import ctypes
import mmap
import os

from mindspeed_ms.backend import cpu_mpi, job_client
from mindspeed_ms.backend.mapped_files import mapped_files


def test_names_that_are_no_text_hold_nobody_up(tmp_path):
    names = [tmp_path / os.fsdecode(name) for name in (b"caf\xe9.bin", b"two words.bin")]
    for name in names:
        name.write_bytes(b"tokens")
    with names[0].open("rb") as one, names[1].open("rb") as two:
        maps = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in (one, two)]
    found = mapped_files()
    assert set(map(str, names)) <= set(found) and len(found) == len(set(found))
    cpu_mpi._mapped_library()  # both are asked when a run ends, well or badly
    job_client.remove_mapped_segments()
    for one in maps:
        one.close()


def test_libraries_are_among_them():
    library = ctypes.CDLL("libc.so.6")
    assert library is not None and any("libc" in os.path.basename(path) for path in mapped_files())
