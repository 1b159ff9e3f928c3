# SPDX-License-Identifier: Apache-2.0
"""Run every case on the Ascend kernel set under the op plugin: ``run_cases.py plugin kernels out``.

A process of its own, because MindSpore looks at MS_OP_PLUGIN_PATH when it is imported, and because
its own kernels read strided tensors wrongly from then on. Writes ``out/results.npz`` and
``out/report.json``: for every case the error (or None) and the journal of launches.
"""

from __future__ import annotations

import ctypes
import json
import sys
import traceback
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from op_plugin.cases import CASES  # noqa: E402

from mindspeed_ms.ops import ascend  # noqa: E402


def main(plugin: str, kernels: str, folder: Path) -> None:
    library = ctypes.CDLL(plugin)
    library.take_journal.restype = ctypes.c_char_p
    library.use_kernels.argtypes = [ctypes.c_char_p]
    if not library.use_kernels(kernels.encode()):
        raise SystemExit(f"{kernels} lacks an entry point that the plugin forwards to")
    ms.mint.erfinv(ms.Tensor(np.zeros(2, np.float32)))  # on purpose outside the plugin
    ascend.unavailable = lambda: ""  # whole models select their kernel set by name
    report, arrays = {}, {}
    for case in CASES:
        library.take_journal()
        try:
            results, error = case.results(ascend), None
        except Exception:  # noqa: BLE001 - reported by the test of this case
            results, error = {}, traceback.format_exc()
        journal = library.take_journal().decode().splitlines()
        types = {name: dtype for name, (_, dtype) in results.items()}
        report[case.name] = {"error": error, "journal": journal, "types": types}
        for name, (values, _) in results.items():
            arrays[f"{case.name}|{name}"] = values
    np.savez(folder / "results.npz", **arrays)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
