# SPDX-License-Identifier: Apache-2.0
"""Layers that predict further tokens, in layouts whose weights are not where they are used."""

import numpy as np
from checkpoint_runs import run

FLAGS = (
    "--mtp-num-layers 1 --mtp-detach-heads --attention-dropout 0 --hidden-dropout 0 "
    "--exit-interval 4"
).split()
LAYOUTS = ("--zero-level z3", "--pipeline-model-parallel-size 2 --zero-level z3")


def losses_of(layout, cache):
    """Losses of the further token, by iteration."""
    layers = run("llama", [*FLAGS, *layout.split()], cache)["layers"]
    return [float(layers[number]["mtp_1 loss"][0]) for number in sorted(layers)]


def detached_worker(layouts, cache):
    return [losses_of(layout, cache) for layout in layouts]


def test_a_detached_head_is_whole_where_weights_are_sharded(dist_run, tmp_path):
    found = dist_run(detached_worker, ranks=2, layouts=LAYOUTS, cache=str(tmp_path))
    expected = losses_of("", tmp_path)
    assert len(expected) == 4 and expected[-1] < expected[0]
    for losses in found[-1]:
        np.testing.assert_allclose(losses, expected, rtol=2e-6)
