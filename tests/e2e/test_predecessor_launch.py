# SPDX-License-Identifier: Apache-2.0
"""Scripts of the predecessor in jobs of their own, begun by ``mindspore.communication.init()``."""

import re

import pytest
from jobs import Job, launch_words

TIME_LIMIT = 170.0

SCRIPT = """
import sys
import numpy as np
import mindspore as ms
import mindspore.dataset as ds
from mindspore import Tensor, nn, ops
from mindspore.communication import init
from mindspeed_ms.core.config import ModelParallelConfig, TrainingConfig, TransformerConfig
from mindspeed_ms.core.config import DatasetConfig, set_global_args
from mindspeed_ms.core.context_parallel.utils import get_batch_on_this_cp_rank
from mindspeed_ms.core.parallel_state import (
    get_context_parallel_group, get_data_parallel_group, initialize_model_parallel)
from mindspeed_ms.core.tensor_parallel.random import set_rng_seed
from mindspeed_ms.legacy.model.language_model import get_language_model
from mindspeed_ms.training import TrainOneStepCell, train

context = int(sys.argv[1])
ms.set_context(mode=ms.PYNATIVE_MODE)
init()
parallel = ModelParallelConfig(context_parallel_size=context)
training = TrainingConfig(parallel, DatasetConfig(batch_size=2), epochs=1, loss_reduction="sum")
config = TransformerConfig(
    vocab_size=64, num_layers=2, num_attention_heads=4, hidden_size=32, ffn_hidden_size=64,
    seq_length=16, position_embedding_type="rope", normalization="FusedRMSNorm",
    compute_dtype="float32", parallel_config=parallel, training_config=training)
set_global_args(parallel)
initialize_model_parallel(context_parallel_size=context)
set_rng_seed(1)


class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.model, _ = get_language_model(
            config, num_tokentypes=0, add_pooler=False, encoder_attn_mask_type=None)
        self.gather = ops.AllGather(group=get_context_parallel_group())

    def construct(self, input_ids, labels, attention_mask):
        batch = get_batch_on_this_cp_rank({"input_ids": input_ids, "labels": labels})
        out = self.model(batch["input_ids"], None, attention_mask)
        if context > 1:
            whole = self.gather(ops.stop_gradient(out).swapaxes(0, 1))
            assert whole.shape == (16, 2, 32), whole.shape
        return ops.abs(out - batch["labels"]).sum()


rng = np.random.RandomState(0)
rows = [(rng.randint(0, 64, 16).astype(np.int32), rng.randn(16, 32).astype(np.float32),
         np.triu(np.ones((1, 16, 16)), 1).astype(np.uint8)) for _ in range(4)]
data = ds.GeneratorDataset(rows, ["input_ids", "labels", "attention_mask"], shuffle=False)
net = Net()
total = ops.AllReduce(group=get_data_parallel_group())(Tensor([1.0], ms.float32))
assert total.asnumpy()[0] == 1.0
optimizer = nn.AdamWeightDecay(net.get_parameters(), learning_rate=1e-3)
train(TrainOneStepCell(net, optimizer, None, training, config), data.batch(2), training)
"""


def losses(folder, ranks):
    """Losses of a run, summed over its ranks."""
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    words = [*launch_words("msrun", ranks, folder), str(folder / "script.py"), str(ranks)]
    job = Job(words, folder)
    try:
        status = job.wait(TIME_LIMIT)
    finally:
        left = job.end()
    assert status == 0 and not left, f"{status}, left {left}: {job.text()[-3000:]}"
    logs = [(folder / "log" / f"worker_{rank}.log").read_text() for rank in range(ranks)]
    found = [[float(one) for one in re.findall(r"Loss: ([-\d.]+),", log)] for log in logs]
    return [sum(step) for step in zip(*found, strict=True)]


@pytest.mark.slow
def test_a_script_that_calls_init_itself(tmp_path):
    alone, shared = losses(tmp_path / "one", 1), losses(tmp_path / "two", 2)
    assert len(alone) == 2 and alone[1] != alone[0]
    assert shared == pytest.approx(alone, rel=1e-4)
