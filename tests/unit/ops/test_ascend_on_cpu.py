# SPDX-License-Identifier: Apache-2.0
"""The Ascend call path executed on CPU, forward and backward, against the portable definitions.

MindSpore launches the primitives of ``ops/ascend`` through its CPU op-plugin hook; the plugin of
``tests/op_plugin`` holds every call to the documented rules and computes it on the native library.
"""

import re

import pytest
from op_plugin import build
from op_plugin.cases import CASES
from ops_reference import assert_close

from mindspeed_ms.ops import portable
from mindspeed_ms.ops.cpu import library


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The cases on the Ascend set, run once."""
    if build.compiler() is None:
        pytest.skip("no C++ compiler for the op plugin")
    if library.loading().library is None:
        pytest.skip(library.loading().reason)
    folder = tmp_path_factory.mktemp("op_plugin")
    return build.run(build.build(folder), library.library().path, folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ascend_calls_match_the_definition(case, ran):
    report = ran.report[case.name]
    rejected = [line for line in report["journal"] if line.startswith("rejected")]
    assert not rejected, "\n".join(rejected)
    assert report["error"] is None, report["error"]
    missing = case.launches - {line.split()[0] for line in report["journal"]}
    assert not missing, f"{missing} did not run:\n" + "\n".join(report["journal"])
    wanted = case.results(portable)
    assert set(report["types"]) == set(wanted)
    for name, (values, dtype) in wanted.items():
        assert report["types"][name] == dtype, name
        assert_close(ran.arrays[f"{case.name}|{name}"], values, case.tolerance, name)


def test_nothing_ran_on_kernels_that_ignore_strides(ran):
    """Under the plugin MindSpore's own CPU kernels read strided tensors as if they were dense."""
    outside = set(re.findall(r"Can't find '(\w+) on CPU in op plugin", ran.log))
    assert outside == {"Erfinv"}, "one is launched on purpose, to show that the log still tells"


def test_every_operation_of_the_plugin_is_used(ran):
    offered = set()
    for source in build.SOURCES.glob("*.cpp"):
        offered |= set(re.findall(r"^OPERATION\((\w+)\)", source.read_text(), re.MULTILINE))
    launched = {line.split()[0] for case in ran.report.values() for line in case["journal"]}
    assert offered == launched
