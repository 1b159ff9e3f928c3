# SPDX-License-Identifier: Apache-2.0
"""A replica of the weights that has left the others is named."""

import numpy as np
import pytest
import tiny_training as tiny

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core.distributed.replica_check import require_equal_replicas
from mindspeed_ms.core.parameter import named_parameters

pytestmark = pytest.mark.ranks


def check_worker(ddp, victim, tensor=1):
    """What is said before and after one number of a weight changes on one rank."""
    tiny.start(tensor)
    wrapped, rule = tiny.build(ddp, None, tensor)
    tiny.train(wrapped, rule, 2)
    require_equal_replicas([wrapped], 2)
    parameters = dict(named_parameters(wrapped.module))
    name = next(name for name in parameters if name.endswith("blocks.1.norm.weight"))
    if comm.get_rank() == victim:
        weight = memory.as_numpy(parameters[name])
        weight[3] = np.nextafter(weight[3], np.float32(9))
    try:
        require_equal_replicas([wrapped], 3)
    except RuntimeError as error:
        return name, str(error)
    return name, None


@pytest.mark.parametrize(
    ("ranks", "victim", "ddp", "tensor"),
    [
        (4, 2, None, 1),
        (2, 1, {"use_distributed_optimizer": True, "overlap_param_gather": True}, 1),
        (4, 3, {"zero_level": "z2"}, 2),
        (2, 0, {"zero_level": "z3"}, 1),  # norms stay whole there
    ],
)
def test_a_diverged_replica_is_named_on_all_ranks(dist_run, ranks, victim, ddp, tensor):
    results = dist_run(check_worker, ranks=ranks, ddp=ddp, victim=victim, tensor=tensor)
    for name, message in results:
        assert message is not None and f"value of {name} than ranks" in message
        assert message.startswith("after iteration 3 rank ")
        if ranks // tensor > 2:
            assert f"rank {victim} holds another value" in message
    assert len({message for _, message in results}) == 1
