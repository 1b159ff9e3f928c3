# SPDX-License-Identifier: Apache-2.0
"""The kernel set is chosen once, named in the log, and never replaced silently."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from mindspeed_ms import ops
from mindspeed_ms.backend import device
from mindspeed_ms.ops import ascend, cpu, portable, selection
from mindspeed_ms.ops.cpu import library, products
from mindspeed_ms.ops.kernel_set import KernelSet

SELECTION = {"report", "select", "selected"}
# What an attention call is made of, the same for every set.
ARGUMENTS = {
    "AttentionCall",
    "Documents",
    "Gate",
    "KeyRanges",
    "ScoreDropout",
    "ScorePlaces",
    "ScoreStorage",
    "Window",
    "draw_dropout",
}
NOT_OPERATIONS = SELECTION | ARGUMENTS | {"attend"}
OPERATIONS = {name for name in vars(KernelSet) if not name.startswith("_")}


@pytest.fixture(autouse=True)
def restore_choice():
    """Leave the process with the choice it had."""
    before = ops.selected()
    yield
    ops.select(before)


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    """A process in which the native library was not built."""
    missing = library._Loading(tmp_path)
    monkeypatch.setattr(library, "loading", lambda: missing)


@pytest.mark.parametrize("kernels", [portable, cpu, ascend], ids=lambda m: m.__name__)
def test_every_set_has_every_operation_with_the_parameters_of_the_protocol(kernels):
    for name in OPERATIONS:
        wanted = list(inspect.signature(getattr(KernelSet, name)).parameters)[1:]
        assert list(inspect.signature(getattr(kernels, name)).parameters) == wanted, name


def test_every_operation_is_public():
    assert OPERATIONS - {"describe", "unavailable"} == set(ops.__all__) - NOT_OPERATIONS


def test_portable_can_be_asked_for_everywhere():
    assert ops.select("portable") == "portable" == ops.selected()
    assert "portable" in ops.report()


def test_auto_takes_the_native_library_when_it_loads():
    assert ops.select("auto") == ("portable" if cpu.unavailable() else "cpu")


def test_the_first_use_chooses(monkeypatch):
    monkeypatch.setattr(selection, "chosen", selection.Choice())
    assert ops.selected() in ("cpu", "portable")


@pytest.mark.skipif(bool(cpu.unavailable()), reason="no native library was built")
def test_the_report_names_the_instruction_set_and_the_threads():
    ops.select("cpu")
    text = ops.report()
    assert library.library().level in text and "thread" in text and "GEMM" in text


def test_auto_without_the_library_says_what_that_costs(no_library):
    assert ops.select("auto") == "portable"
    text = ops.report()
    assert "no native library" in text and "twice as long" in text and "pip install" in text
    assert text.count("\n") == 1


def test_a_requested_but_missing_library_is_an_error(no_library):
    with pytest.raises(RuntimeError, match="'cpu' was requested but cannot run: no native library"):
        ops.select("cpu")
    with pytest.raises(RuntimeError, match="build_ext --inplace"):
        library.library()


def test_a_library_that_does_not_load_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "_kernels_generic.so").write_bytes(b"not a library")
    broken = library._Loading(tmp_path)
    monkeypatch.setattr(library, "loading", lambda: broken)
    with pytest.raises(RuntimeError, match="does not load"):
        ops.select("cpu")


def test_ascend_without_an_npu_is_an_error():
    with pytest.raises(RuntimeError, match="no Ascend NPU"):
        ops.select("ascend")


def test_the_native_library_is_refused_on_an_npu(monkeypatch):
    monkeypatch.setattr(device, "is_ascend", lambda: True)
    assert "ascend" in cpu.unavailable()


def test_an_unknown_set_is_an_error():
    with pytest.raises(ValueError, match="use one of auto, portable, cpu, ascend"):
        ops.select("fast")


def test_the_best_instruction_set_of_the_cpu_comes_first(tmp_path):
    for level in ("generic", "avx2", "avx512"):
        (tmp_path / f"_kernels_{level}.so").touch()
    avx2 = frozenset({"avx2", "fma", "f16c"})
    avx512 = avx2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    assert [level for level, _ in library.candidates(avx512, tmp_path)][0] == "avx512"
    assert [level for level, _ in library.candidates(avx2, tmp_path)] == ["avx2", "generic"]
    assert [level for level, _ in library.candidates(frozenset(), tmp_path)] == ["generic"]
    assert library.candidates(avx512, Path("/nowhere")) == []


def test_products_can_be_kept_to_the_library_and_unknown_choices_are_refused():
    assert products.find("own", frozenset()) == products.OWN
    assert products.find("auto", frozenset()).bgemm == 0
    amx = frozenset({"avx512f", "amx_tile", "amx_bf16"})
    assert products.find("auto", amx).tiles == products.HALF_TYPES
    assert products.find("tiles", amx).tiles == products.ALL_TYPES
    assert not products.find("tiles", frozenset({"avx512f"})).tiles
    assert not products.find("vector", amx).tiles
    assert not products.find("auto", amx - {"amx_bf16"}).tiles
    with pytest.raises(ValueError, match="use auto, tiles, vector or own"):
        products.find("mkl", frozenset())
