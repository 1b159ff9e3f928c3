# SPDX-License-Identifier: Apache-2.0
"""Kernels that were compiled from other sources are not called."""

import shutil
from pathlib import Path

import pytest

import mindspeed_ms
from mindspeed_ms.files.native_library import open_library
from mindspeed_ms.ops.cpu import library

PACKAGE = Path(mindspeed_ms.__file__).parent
BUILT = {path.stem: path for path in PACKAGE.rglob("_kernels_*.so")}
needs_kernels = pytest.mark.skipif(not BUILT, reason="no native library was built")


@pytest.fixture(params=sorted(BUILT))
def copied(request, tmp_path):
    """A library with its sources, in a folder of its own."""
    built = BUILT[request.param]
    shutil.copytree(built.parent / "csrc", tmp_path / "csrc")
    return Path(shutil.copy(built, tmp_path))


@needs_kernels
def test_a_library_fits_the_sources_it_was_built_from(copied):
    open_library(copied)


@needs_kernels
def test_without_sources_there_is_nothing_to_compare(copied):
    shutil.rmtree(copied.parent / "csrc")
    open_library(copied)


@needs_kernels
@pytest.mark.parametrize("change", ["content", "name", "more"])
def test_a_library_of_other_sources_is_refused(copied, change):
    source = next((copied.parent / "csrc").glob("*.cpp"))
    if change == "content":
        source.write_text(source.read_text("utf-8") + "\n", "utf-8")
    elif change == "name":
        source.rename(source.with_name("another.cpp"))
    else:
        source.with_name("another.h").touch()
    with pytest.raises(OSError, match="built from other sources than those in .*csrc"):
        open_library(copied)


@pytest.mark.skipif("_kernels_generic" not in BUILT, reason="no native library was built")
def test_stale_kernels_give_way_to_the_portable_ones_with_a_reason(tmp_path):
    shutil.copy(BUILT["_kernels_generic"], tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "other.cpp").touch()
    found = library._Loading(tmp_path)
    assert found.library is None
    assert "built from other sources" in found.reason
    assert "setup.py build_ext --inplace" in found.reason
