# SPDX-License-Identifier: Apache-2.0
"""Megatron's checkpoints of iteration 10 continue Megatron's own loss curve, in any layout."""

from pathlib import Path

import numpy as np
import pytest
from pipeline_runs import provider

from mindspeed_ms.backend import comm
from mindspeed_ms.command import parity
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.training import initialize_megatron, pretrain
from mindspeed_ms.training.conversion import ConvertOptions, convert, open_source

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def continue_worker(case, checkpoint, flags, output):
    """Differences of loss and gradient norm from Megatron's, by iteration."""
    comm.init_process_group()
    run = parity.load_run(GOLDEN, case)
    recorded = [
        word for word in parity.recorded_flags(run, GOLDEN, output) if word != "--no-load-optim"
    ]
    load = ["--load", str(GOLDEN / "ckpt" / checkpoint)]
    initialize_megatron(argv=[*recorded, *parity.QUIET, *load, *flags])
    comparison = parity.Comparison(run["lm_loss"], run["grad_norm"])
    pretrain(None, provider, all_config=get_all_config(), on_step=comparison.add)
    return (
        [step.iteration for step in comparison.steps],
        comparison.worst_loss,
        comparison.worst_grad_norm,
    )


@pytest.mark.parametrize(
    ("ranks", "case", "checkpoint", "flags"),
    [
        (1, "a_gpt2", "a_gpt2_save", ""),
        (2, "a_gpt2", "a_gpt2_save", "--tensor-model-parallel-size 2 --sequence-parallel"),
        pytest.param(
            *(2, "a_gpt2", "a_gpt2_save", "--pipeline-model-parallel-size 2"),
            marks=pytest.mark.slow,
        ),
        (2, "b_llama", "e_llama_dp2_distopt_save", "--use-distributed-optimizer"),
        pytest.param(
            *(2, "b_llama", "e_llama_dp2_distopt_save", "--pipeline-model-parallel-size 2"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_goes_on_as_in_megatron(dist_run, tmp_path, ranks, case, checkpoint, flags):
    results = dist_run(
        continue_worker,
        ranks=ranks,
        timeout=120.0,
        case=case,
        checkpoint=checkpoint,
        flags=flags.split(),
        output=str(tmp_path),
    )
    for iterations, loss_error, norm_error in results:
        assert iterations == list(range(11, 21))
        assert loss_error <= 1e-5 and norm_error <= 1e-4


def save_worker(output):
    """Ten iterations of Megatron's recorded run, saved and converted to Megatron's format."""
    comm.init_process_group()
    run = parity.load_run(GOLDEN, "a_gpt2")
    recorded = parity.recorded_flags(run, GOLDEN, output)
    save = ["--save", f"{output}/own", "--save-interval", "10", "--exit-interval", "10"]
    initialize_megatron(argv=[*recorded, *parity.QUIET, *save])
    pretrain(None, provider, all_config=get_all_config())
    convert(Path(output) / "own", Path(output) / "megatron", ConvertOptions(to="megatron"))


def test_what_is_saved_is_what_megatron_saved(dist_run, tmp_path):
    """The same state after ten iterations, down to the optimizer's, in files of the same form."""
    dist_run(save_worker, ranks=1, timeout=120.0, output=str(tmp_path))
    ours = open_source(tmp_path / "megatron", ConvertOptions())[0]
    theirs = open_source(GOLDEN / "ckpt" / "a_gpt2_save", ConvertOptions())[0]
    assert ours.tensors.keys() == theirs.tensors.keys()
    with TensorReader() as reader:
        for name, tensor in theirs.tensors.items():
            expected = reader.read(tensor)
            error = np.abs(reader.read(ours.tensors[name]) - expected).max()
            # The gradient of a key's bias is rounding noise, and Adam makes steps of noise, too.
            assert error <= 1e-4 * np.abs(expected).max() + 2e-6, name
    for key in ("iteration", "consumed_train_samples", "scheduler", "optimizer"):
        assert ours.common[key] == theirs.common[key], key
    left, right = ours.common["megatron_args"], theirs.common["megatron_args"]
    for key in (
        *("num_layers", "hidden_size", "num_attention_heads", "add_position_embedding"),
        *("padded_vocab_size", "max_position_embeddings", "seq_length", "ffn_hidden_size"),
        *("tensor_model_parallel_size", "pipeline_model_parallel_size", "normalization"),
        *("untie_embeddings_and_output_weights", "swiglu", "group_query_attention", "seed"),
    ):
        assert left[key] == right[key], key
