# SPDX-License-Identifier: Apache-2.0
"""A teacher in memory: its description, its bytes, and what is refused beside it."""

import pytest

from mindspeed_ms.config import unsupported_reason
from mindspeed_ms.config.build import assemble
from mindspeed_ms.models.teacher import teacher_config
from mindspeed_ms.planning.memory import stage_state
from mindspeed_ms.planning.parameters import total_parameters
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.from_args import init_configs_from_args

SIZES = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 "
    "--max-position-embeddings 32 --micro-batch-size 1 --padded-vocab-size 128 --train-iters 1 "
    "--lr 1e-3 --mock-data --pipeline-model-parallel-size 2"
)
TEACHER = "--qad-enable --qad-teacher-load somewhere"


def configured(words=""):
    return init_configs_from_args(validate_args(parse_args(f"{SIZES} {words}".split()), 2))


def test_the_last_stage_holds_a_whole_teacher():
    usual, taught = configured(), configured(TEACHER)
    sections = taught.to_dict()
    sections["training_config"]["qad_teacher_config"] = {
        "model_config": {"num_layers": 8, "hidden_size": 128}
    }
    larger = assemble(sections)
    for config in (taught, larger):
        teacher = teacher_config(config)
        assert teacher.parallel_config.pipeline_model_parallel_size == 1
        weights = [
            stage_state(config, 2, stage).weights - stage_state(usual, 2, stage).weights
            for stage in (0, 1)
        ]
        assert weights == [0, 4 * total_parameters(teacher)]
    assert teacher.model_config.num_layers == 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--qad-enable", "qad_enable needs the teacher"),
        (f"{TEACHER} --logits-load-dir there", "leave one of them out"),
        (f"{TEACHER} --kl-temperature 0", "must be larger than 0"),
    ],
)
def test_what_a_teacher_cannot_stand_beside_is_one_line(words, told):
    with pytest.raises(ValueError, match=told):
        configured(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--mtp-num-layers 1 --position-embedding-type rope", "qad_enable is for the next token"),
        ("--loss-reduction sum", "loss_reduction sum is of the labels' loss"),
        ("--calculate-per-token-loss --kl-loss-reduction sum", "kl_loss_reduction sum does not"),
    ],
)
def test_losses_that_do_not_go_with_a_teacher_are_refused(words, told):
    assert told in " ".join(unsupported_reason(configured(f"{TEACHER} {words}")))


def test_the_switch_that_is_off_again():
    assert not configured(f"{TEACHER} --no-qad-enable").training_config.qad_enable
