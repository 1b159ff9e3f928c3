# SPDX-License-Identifier: Apache-2.0
"""Which weights a replayed run starts from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mindspeed_ms.command import parity


def folder(tmp_path, **cases):
    (tmp_path / "runs").mkdir()
    (tmp_path / "weights_npz").mkdir()
    for case, args in cases.items():
        run = {"args": args, "command_line": [], "lm_loss": [], "grad_norm": [], "world_size": 1}
        (tmp_path / "runs" / f"{case}.json").write_text(json.dumps(run))
    return tmp_path


def add_weights(golden, case):
    path = golden / "weights_npz" / f"{case}_iter_0000000.npz"
    np.savez(path, w=np.zeros(1))
    return path


def test_a_case_without_weights_starts_like_its_twin(tmp_path):
    args = {"seed": 1, "num_layers": 2, "init_method_std": 0.1}
    golden = folder(
        tmp_path,
        cold={**args, "init_method_std": 0.02},
        one=args,
        split={**args, "tensor_model_parallel_size": 2},
    )
    cold, one = add_weights(golden, "cold"), add_weights(golden, "one")
    assert parity.initial_weights(golden, "cold") == cold
    assert parity.initial_weights(golden, "split") == one
    one.unlink()
    with pytest.raises(FileNotFoundError, match="no other case .* --weights"):
        parity.initial_weights(golden, "split")
