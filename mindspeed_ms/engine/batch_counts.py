# SPDX-License-Identifier: Apache-2.0
"""How many iterations and samples a run has: the formulas over batch sizes.

Source: Megatron-LM ``update_train_iters``, ``get_train_valid_test_num_samples`` and
``build_train_valid_test_data_iterators``. Deliberate difference: what is left of a run that is
resumed with another batch size is counted from where it stands.
"""

from __future__ import annotations

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig, TrainingConfig
from mindspeed_ms.core.num_microbatches_calculator import NumMicroBatches, make_batch_schedule
from mindspeed_ms.engine.train_state import TrainState

NumSamples = tuple[int, int | None, int]


def calculator_of(config: AllConfig) -> NumMicroBatches:
    """Batch sizes of a configuration on the ranks of this job, at the beginning of the run."""
    training, world_size = config.training_config, comm.get_world_size()
    schedule = make_batch_schedule(
        config.global_batch_size(world_size),
        training.rampup_batch_size,
        training.step_batch_size_schedule,
        config.model_config.seq_length,
    )
    return NumMicroBatches(
        schedule,
        config.dataset_config.batch_size,
        config.parallel_config.data_parallel_size(world_size),
        training.decrease_batch_size_if_needed,
    )


def num_train_iters(config: AllConfig, state: TrainState) -> int:
    """The last iteration of a run, also when its length is given in samples."""
    training = config.training_config
    if training.train_samples is None:
        return training.training_iters
    left = calculator_of(config).iterations_for(
        training.train_samples, state.consumed_train_samples
    )
    return state.iteration + left


def num_samples(config: AllConfig, state: TrainState) -> NumSamples:
    """Samples that training, validation and test will read in all; None for a full validation.

    Args:
        config: the configuration.
        state: where the run stands.
    """
    training, batch = config.training_config, config.global_batch_size(comm.get_world_size())
    last = num_train_iters(config, state)
    end = calculator_of(config).consumed_after(
        max(0, last - state.iteration), state.consumed_train_samples
    )
    asked_for = training.train_samples or training.training_iters * batch
    if training.phase_transition_iterations:
        asked_for = end = phase(config, state, asked_for)[1]
    per_evaluation = training.eval_iters * config.evaluation_batch_size(comm.get_world_size())
    left = num_evaluations(training, last) - num_evaluations(training, state.iteration) + 1
    evaluated = None
    if not training.full_validation:
        evaluated = state.consumed_valid_samples + left * per_evaluation
    return max(asked_for, end) - state.data_began_at, evaluated, per_evaluation


def phase(config: AllConfig, state: TrainState, end: int = 0) -> tuple[int, int]:
    """Samples at which the data that a run stands in begins and ends.

    Args:
        config: the configuration, with ``phase_transition_iterations``.
        state: where the run stands.
        end: samples of the whole run.
    """
    batch = config.global_batch_size(comm.get_world_size())
    bounds = [at * batch for at in config.training_config.phase_transition_iterations or ()]
    now = state.iteration * batch
    began = max((bound for bound in bounds if bound <= now), default=0)
    return began, min((bound for bound in bounds if bound > now), default=max(end, began))


def num_evaluations(training: TrainingConfig, iteration: int) -> int:
    """Evaluations in the course of training, up to an iteration."""
    interval, first = training.eval_interval, training.start_eval_at_iter
    if not interval or iteration < first:
        return 0
    return iteration // interval - max(0, first - 1) // interval


def is_evaluated(training: TrainingConfig, iteration: int) -> bool:
    """Whether the validation sets are evaluated behind an iteration."""
    before = num_evaluations(training, iteration - 1)
    return num_evaluations(training, iteration) > before


def evaluated_samples(config: AllConfig, iteration: int) -> int:
    """Samples of a validation set that evaluations up to an iteration have read."""
    training = config.training_config
    evaluations = num_evaluations(training, iteration)
    return evaluations * training.eval_iters * config.evaluation_batch_size(comm.get_world_size())


def nothing_to_train(config: AllConfig, state: TrainState) -> str | None:
    """Why a run has no iteration left, in words; None if it has one."""
    last = num_train_iters(config, state)
    if state.iteration < last:
        return None
    training, consumed = config.training_config, state.consumed_train_samples
    if training.train_samples is None:
        return (
            f"nothing to train: the run stands at iteration {state.iteration} of {last}; raise "
            "--train-iters (YAML: training_iters)"
        )
    left = max(0, training.train_samples - consumed)
    return (
        f"nothing to train: {consumed} of {training.train_samples} samples are consumed, and "
        f"{left} make no batch of {config.global_batch_size(comm.get_world_size())}; raise "
        "--train-samples or lower the batch size"
    )
