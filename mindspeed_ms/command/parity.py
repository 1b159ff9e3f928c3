# SPDX-License-Identifier: Apache-2.0
"""Replay a Megatron run, recorded or from its log, and print the difference per iteration.

    mindspeed-ms parity --golden tests/data/golden --case b_llama_hot
    mpiexec -n 2 mindspeed-ms parity --golden DIR --case a_gpt2_hot --sequence-parallel ...

    mindspeed-ms parity --log megatron.log -- FLAGS OF THE SCRIPT

A log is compared line by line; where the curves part, the likely cause is named: data order,
initial weights, schedule, rotary angles, epsilons, told apart by what they leave in the numbers.

A folder of recorded runs holds ``runs/CASE.json`` (Megatron's command line, its losses and gradient
norms), ``weights_npz/CASE_iter_0000000.npz`` (initial weights on one rank, of this case or of one
that differs in layout only) and the token files, in ``corpus/`` or beside them. Flags that are not
the tool's own are added to the recorded command line. The status is 1 when a difference exceeds its
tolerance.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.backend import comm
from mindspeed_ms.command import parity_log
from mindspeed_ms.command.megatron_weights import provider_from
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.step_report import StepReport
from mindspeed_ms.files.regular_file import read_json
from mindspeed_ms.files.whole import temporary_folder
from mindspeed_ms.toolkit.launch.command import Parser
from mindspeed_ms.training import initialize_megatron, pretrain, print_rank_0
from mindspeed_ms.training.entry import user_errors

LOSS_TOLERANCE = 1e-5
"""Absolute, on the loss of an iteration."""

QUIET = ("--log-interval", "1000000")
"""The comparison prints every iteration; the training log would double it."""

GRAD_NORM_TOLERANCE = 1e-4
"""Relative, on the gradient norm of an iteration."""

_OF_A_RUN = ("command_line", "lm_loss", "grad_norm", "world_size")
"""What the record of a run holds at least."""

LAYER_LOSS = "load_balancing_loss"
"""Loss of MoE layers; a recorded run has its sum over micro-batches for each layer."""


@dataclass(slots=True)
class Comparison:
    """Collects the steps of a run beside the recorded ones."""

    losses: list[float]
    grad_norms: list[float]
    layer_losses: np.ndarray | None = None
    """Balance loss of every layer, [iterations, layers], means over micro-batches."""
    worst_loss: float = 0.0
    worst_grad_norm: float = 0.0
    worst_layer_loss: float = 0.0
    steps: list[StepReport] = field(default_factory=list)

    def add(self, step: StepReport) -> None:
        """Compare one iteration and print it."""
        self.steps.append(step)
        index = step.iteration - 1
        loss, norm = step.losses["lm loss"], step.grad_norm or 0.0
        loss_error = abs(loss - self.losses[index])
        norm_error = abs(norm - self.grad_norms[index]) / self.grad_norms[index]
        self.worst_loss = _worse(self.worst_loss, loss_error)
        self.worst_grad_norm = _worse(self.worst_grad_norm, norm_error)
        line = (
            f"{step.iteration:4d}  loss {loss:.8f}  difference {loss_error:8.2e}  "
            f"grad norm {norm:.6f}  relative difference {norm_error:8.2e}"
        )
        if self.layer_losses is not None:
            layers = step.layer_losses[LAYER_LOSS]
            layer_error = float(np.abs(layers - self.layer_losses[index]).max())
            self.worst_layer_loss = _worse(self.worst_layer_loss, layer_error)
            line += f"  balance loss {layers.mean():.7f}  difference {layer_error:8.2e}"
        print_rank_0(line)

    @property
    def passed(self) -> bool:
        """True when every iteration ran and lies within the tolerances."""
        return (
            len(self.steps) == len(self.losses)
            and self.worst_loss <= LOSS_TOLERANCE
            and self.worst_grad_norm <= GRAD_NORM_TOLERANCE
            and self.worst_layer_loss <= LOSS_TOLERANCE
        )


def _worse(worst: float, error: float) -> float:
    """Maximum in which NaN wins."""
    return error if np.isnan(error) or error > worst else worst


def load_run(golden: Path, case: str) -> dict[str, Any]:
    """A recorded run.

    Raises:
        FileNotFoundError: the case is not in the folder.
        ValueError: its file is damaged.
    """
    path = golden / "runs" / f"{case}.json"
    if not path.is_file():
        cases = ", ".join(sorted(file.stem for file in path.parent.glob("*.json")))
        raise FileNotFoundError(
            f"{path} is not there; {golden} {f'holds the cases {cases}' if cases else 'has none'}: "
            "correct --golden or --case"
        )
    run = read_json(path)
    missing = [name for name in _OF_A_RUN if name not in run]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}; record the run again")
    return run


INITIAL_WEIGHTS_DEPEND_ON = (
    "seed",
    "init_method_std",
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "swiglu",
    "normalization",
    "position_embedding_type",
    "untie_embeddings_and_output_weights",
    "add_bias_linear",
    "num_experts",
    "padded_vocab_size",
)
"""Of Megatron's arguments."""


def initial_weights(golden: Path, case: str) -> Path | None:
    """One-rank initial weights of a case: its own file, or that of a case that starts alike.

    None when the folder keeps no arguments of the case and Megatron drew the weights with
    ``--use-cpu-initialization``: then the model draws the same.

    Raises:
        FileNotFoundError: the folder has neither.
    """
    own = golden / "weights_npz" / f"{case}_iter_0000000.npz"
    if own.is_file():
        return own
    run = load_run(golden, case)
    if "args" not in run and "--use-cpu-initialization" in run["command_line"]:
        return None
    wanted = run.get("args")
    for path in sorted(own.parent.glob("*_iter_0000000.npz")):
        args = load_run(golden, path.name.removesuffix("_iter_0000000.npz")).get("args")
        if wanted and args and _start_alike(args, wanted):
            return path
    raise FileNotFoundError(
        f"{own} is missing and no other case of {golden} starts from the same weights; name a "
        "file with --weights"
    )


def _start_alike(args: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    return all(args.get(name) == others.get(name) for name in INITIAL_WEIGHTS_DEPEND_ON)


def recorded_layer_losses(run: dict[str, Any]) -> np.ndarray | None:
    """Balance losses of a run on one rank, [iterations, layers]; None if it has none."""
    found = [values for name, values in run.get("other_losses", {}).items() if LAYER_LOSS in name]
    if not found or run["world_size"] != 1:
        return None
    words = run["command_line"]
    sizes = [
        int(words[words.index(flag) + 1]) for flag in ("--global-batch-size", "--micro-batch-size")
    ]
    return np.array(found[0], np.float64) / (sizes[0] // sizes[1])


def recorded_flags(run: dict[str, Any], corpus: Path, output: str) -> list[str]:
    """Megatron's command line with its folders filled in."""
    return [
        word.replace("$CORPUS", str(corpus)).replace("$OUT", output) for word in run["command_line"]
    ]


def replay(golden: Path, case: str, flags: list[str], weights: Path | None = None) -> Comparison:
    """Run a recorded case with additional flags; collective over all ranks.

    Raises:
        FileNotFoundError: the case is not in the folder.
    """
    run = load_run(golden, case)
    provider = provider_from(weights or initial_weights(golden, case))
    comparison = Comparison(run["lm_loss"], run["grad_norm"], recorded_layer_losses(run))
    comm.init_process_group()
    with temporary_folder("parity") as output:
        shared = comm.broadcast_object(str(output), 0)
        corpus = golden / "corpus" if (golden / "corpus").is_dir() else golden
        recorded = recorded_flags(run, corpus, shared)
        initialize_megatron(argv=[*recorded, *QUIET, *flags])
        logging.getLogger("mindspeed_ms").setLevel(logging.WARNING)
        pretrain(None, provider, all_config=get_all_config(), on_step=comparison.add)
        comm.barrier()
    return comparison


def main() -> int:
    """Replay one case, or compare with a log; the status says whether it agrees."""
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add("--golden", type=Path, help="folder of recorded runs")
    add("--case", help="name of the run, e.g. b_llama_hot")
    add("--log", type=Path, help="log of a Megatron run with the flags behind --")
    add("--iterations", type=int, default=40, help="lines of the log that are compared (40)")
    add("--tolerance", type=float, help="of a loss of the log; default by the type of computation")
    add("--weights", type=Path, help="initial weights (.npz) instead of the run's own")
    arguments, flags = parser.parse_known_args()
    flags = [flag for flag in flags if flag != "--"]
    if arguments.log is not None:
        with user_errors():
            is_same = parity_log.compare(
                arguments.log,
                flags,
                iterations=arguments.iterations,
                tolerance=arguments.tolerance,
                weights=arguments.weights,
            )
        return 0 if is_same else 1
    if arguments.golden is None or arguments.case is None:
        parser.error("give --log FILE, or --golden DIR and --case NAME")
    with user_errors():
        comparison = replay(arguments.golden, arguments.case, flags, arguments.weights)
    print_rank_0(
        f"largest loss difference {comparison.worst_loss:.2e} (tolerance {LOSS_TOLERANCE:.0e}), "
        f"largest relative grad norm difference {comparison.worst_grad_norm:.2e} "
        f"(tolerance {GRAD_NORM_TOLERANCE:.0e}), largest balance loss difference "
        f"{comparison.worst_layer_loss:.2e}: {'PASSED' if comparison.passed else 'FAILED'}"
    )
    return 0 if comparison.passed else 1
