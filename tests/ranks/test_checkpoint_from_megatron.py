"""Megatron's checkpoints of iteration 10 continue Megatron's own loss curve, in any layout."""

from pathlib import Path

import pytest

from mindspeed_ms.backend import comm
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.training import initialize_megatron, pretrain
from mindspeed_ms.training.global_vars import get_all_config
from tools import parity

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def provider(pre_process, post_process):
    return GPTModel(
        get_all_config().model_config, pre_process=pre_process, post_process=post_process
    )


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
