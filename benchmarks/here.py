# SPDX-License-Identifier: Apache-2.0
"""This project's side of a comparison, started by ``vs_torch.py`` and ``vs_megatron.py``.

    python benchmarks/here.py PORT [--model NAME] flags...

Trains a model of ``reference_model.py`` with the flags; every step waits for its turn
(``turns.py``).
"""

from __future__ import annotations

import sys

from reference_model import FLAGS, MODELS
from turns import Turn

from mindspeed_ms.backend import comm
from mindspeed_ms.command.train import model_provider
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.train_loop import StepReport
from mindspeed_ms.ops.cpu import library
from mindspeed_ms.planning.operations import step_operations
from mindspeed_ms.training import initialize_megatron, pretrain


def main() -> None:
    """Train until the tool closes the line."""
    port, *flags = sys.argv[1:]
    model = FLAGS
    if flags[:1] == ["--model"]:
        model, flags = MODELS[flags[1]], flags[2:]
    initialize_megatron(argv=[*model, *flags, "--train-iters", "2000"])
    turn = Turn(int(port), comm.get_rank())
    config = get_all_config()
    operations = step_operations(
        config.model_config, config.global_batch_size(comm.get_world_size())
    )

    def on_step(step: StepReport) -> None:
        turn.answer(
            seconds=step.seconds,
            loss=step.losses.get("lm loss", 0.0),
            operations=operations,
            threads=library.num_threads(),
        )
        turn.wait()

    turn.wait()
    pretrain(None, model_provider, all_config=get_all_config(), on_step=on_step)


if __name__ == "__main__":
    main()
