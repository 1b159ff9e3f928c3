# SPDX-License-Identifier: Apache-2.0
"""Forward steps: what models and users' own functions may return."""

import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms.backend import memory
from mindspeed_ms.engine.datasets import EndlessLoader, get_batch
from mindspeed_ms.engine.forward_step import default_forward_step, megatron_forward_step
from mindspeed_ms.engine.shared_sequences import _with_something_to_cut


def _batch():
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    mask = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    return {"tokens": ids, "labels": ids + 1, "loss_mask": mask, "position_ids": ids}


def test_get_batch_makes_int32_tensors_and_leaves_the_mask_out():
    batch = get_batch(iter([_batch()]))
    assert batch["attention_mask"] is None
    assert all(batch[name].dtype == ms.int32 for name in ("tokens", "labels", "position_ids"))
    assert batch["loss_mask"].dtype == ms.float32


@pytest.mark.parametrize("as_tuple", [False, True])
def test_the_default_step_reports_the_sum_over_tokens(as_tuple):
    def read(iterator):
        batch = get_batch(iterator)
        order = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")
        return tuple(batch[name] for name in order) if as_tuple else batch

    def model(tokens, position_ids, attention_mask, loss_mask, labels):
        return ms.Tensor(2.5, ms.float32)

    output, loss_func = default_forward_step(read)(iter([_batch()]), model)
    loss, tokens, report = loss_func(output)
    assert float(loss) == 2.5 and tokens == 3.0 and report == {"lm loss": (7.5, 3.0)}


def test_other_numbers_of_values_are_refused():
    with pytest.raises(ValueError, match="returned 2 values"):
        default_forward_step(lambda iterator: (1, 2))(iter([]), None)


def test_megatron_loss_functions_of_both_generations():
    total = ms.Tensor(6.0, ms.float32)
    count = ms.Tensor(3, ms.int32)
    generations = {
        "mean": lambda output: (output, {"lm loss": output}),
        "sum": lambda output: (output, count, {"lm loss": (output, count)}),
        "tensor": lambda output: (
            output,
            count,
            {"lm loss": memory.from_numpy(np.array([6.0, 3.0], np.float32))},
        ),
    }
    results = {}
    for name, user_loss in generations.items():
        step = megatron_forward_step(lambda iterator, model, f=user_loss: (total, f))
        output, loss_func = step(iter([]), None)
        loss, _, report = loss_func(output)
        results[name] = (float(loss), report["lm loss"])
    assert results == {
        "mean": (6.0, (6.0, 1.0)),
        "sum": (2.0, (6.0, 3.0)),
        "tensor": (2.0, (6.0, 3.0)),
    }


def test_endless_loader_counts_passes():
    loader = EndlessLoader([1, 2, 3])
    assert [next(loader) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    assert (loader.epoch, loader.batches_in_epoch) == (2, 1)
    with pytest.raises(RuntimeError, match="yields no micro-batch"):
        next(EndlessLoader([]))


def test_mindspore_datasets_are_read_as_arrays():
    class Dataset:
        def create_dict_iterator(self, output_numpy, num_epochs):
            assert output_numpy and num_epochs == 1
            return iter([{"tokens": 1}])

    assert next(EndlessLoader(Dataset())) == {"tokens": 1}


def test_a_middle_stage_makes_no_mask_of_documents_from_zeros():
    class Model:
        eod_mask = object()

    with pytest.raises(ValueError, match="set reset_attention_mask"):
        _with_something_to_cut({"tokens": None, "attention_mask": None}, Model())
