# SPDX-License-Identifier: Apache-2.0
"""What is written down about a run while it trains; a part of the section ``training_config``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from mindspeed_ms.config.kinds import Count, MaybeEmptyText, Natural
from mindspeed_ms.config.section import Section

LOG_FILE_KINDS = (".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Watching(Section):
    """Fields of figures, curves and diagnostics."""

    report: bool = False
    """Write report.html to output_dir when the run ends. False: ``python -m tools.report`` can."""

    log_file: str | None = None
    """File that gets one line per iteration, as its name ends: ``.csv`` or ``.jsonl``. None: none.
    """

    save_params_interval: Count | None = None
    """Iterations between copies of all weights, below ``params`` of output_dir, written like
    checkpoints. None: none.
    """

    save_wgrads_interval: Count | None = None
    """The same of the gradients of weights, below ``wgrads``: reduced, not clipped. None: none."""

    save_activations_interval: Count | None = None
    """Iterations between copies of what goes into and comes out of linear layers, below
    ``activations``, for the last micro-batch on the first replica. None: none.
    """

    save_dgrads_interval: Count | None = None
    """The same of the gradients of these, below ``dgrads``. None: none."""

    save_tokens_per_expert_interval: Count | None = None
    """Iterations between lines of how many tokens each expert of a rank got in each micro-batch,
    in ``tokens_per_expert/rankN.jsonl``. None: none.
    """

    tensorboard_log_interval: Count = 1
    """Iterations between figures in TensorBoard, Weights & Biases and the run's own record."""

    tensorboard_queue_size: Count = 1000
    """Events that may wait to be written to the TensorBoard file."""

    log_timers_to_tensorboard: bool = False
    """Write the time of an iteration, its throughput and its timers as curves."""

    log_memory_to_tensorboard: bool = False
    """Write the memory of the last rank as curves."""

    log_optimizer_states_to_tensorboard: bool = False
    """Write norms and largest values of moments and weights as curves."""

    log_validation_ppl_to_tensorboard: bool = False
    """Write the perplexity of evaluations beside their loss."""

    log_world_size_to_tensorboard: bool = False
    """Write the number of ranks as a curve."""

    log_loss_scale_to_tensorboard: bool = True
    """Write the loss scale as a curve."""

    log_learning_rate_to_tensorboard: bool = True
    """Write the learning rate as a curve."""

    check_for_spiky_loss: bool = False
    """Warn of a loss ten times as large as those before, and name the micro-batch."""

    check_for_large_grads: bool = False
    """Warn of gradients ten times as large as those before, and name the parameter."""

    log_max_attention_logit: bool = False
    """Write the largest attention score of an iteration as a curve and to the log file. The fused
    attention of an NPU is replaced by one that notes it.
    """

    log_params_norm_per_layer: bool = False
    """Print the norm of the parameters of every layer at log lines, and write it as curves."""

    log_straggler: bool = False
    """Tell at log lines how long every rank computes and waits, and name the slowest."""

    straggler_minmax_count: Count = 1
    """Ranks that are named at either end."""

    profile_ranks: tuple[Natural, ...] | None = None
    """Ranks whose work is profiled. None: all."""

    log_memory_interval: Count | None = None
    """Iterations between tables of the memory of all ranks, planned beside measured. None: none."""

    wandb_project: MaybeEmptyText = ""
    """Project of Weights & Biases that gets the figures. Empty: none does."""

    wandb_exp_name: MaybeEmptyText = ""
    """Name of the run there; needed with wandb_project."""

    wandb_save_dir: MaybeEmptyText = ""
    """Folder of its files. Empty: ``wandb`` below output_dir."""

    wandb_entity: MaybeEmptyText = ""
    """Account or team there. Empty: the user's own."""

    def _check_watching(self) -> None:
        """Rules of these fields.

        Raises:
            ValueError: one is broken.
        """
        if self.log_file is not None and PurePath(self.log_file).suffix not in LOG_FILE_KINDS:
            raise ValueError(
                f"log_file is {self.log_file}; its name must end in {' or '.join(LOG_FILE_KINDS)}"
            )
        if self.wandb_project and not self.wandb_exp_name:
            raise ValueError(
                f"wandb_project {self.wandb_project} needs wandb_exp_name, the run's name there; "
                "give it, or leave wandb_project out"
            )
