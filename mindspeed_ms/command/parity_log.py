# SPDX-License-Identifier: Apache-2.0
"""``parity --log``: this run beside the log of a user's own Megatron run, and why they part."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mindspeed_ms.backend import comm, device
from mindspeed_ms.command import divergence
from mindspeed_ms.command.divergence import Curve
from mindspeed_ms.command.megatron_log import LogLine, read_arguments, read_log
from mindspeed_ms.command.megatron_weights import provider_from
from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core import parallel_state
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.step_report import StepReport
from mindspeed_ms.training import get_args, initialize_megatron, pretrain, print_rank_0

TOLERANCE = {"float32": 5e-6}
HALF_TOLERANCE = 2e-2
"""Of losses, by the type of computation: what the recorded runs keep, and what rounding to half
precision leaves."""
QUIET = ("--log-interval", "1000000", "--eval-iters", "0", "--print-args", "none")
PROBED = 6
"""Iterations over which a changed setting is compared; those before curves part come on top."""
FACTORS: Mapping[str, tuple[str, float]] = {
    "rotary_base": ("rotary", 2.0),
    "norm_epsilon": ("epsilon of the norms", 3.0),
    "adam_eps": ("epsilon of the optimizer", 30.0),
    "adam_beta1": ("optimizer", 0.97),
    "adam_beta2": ("optimizer", 0.99),
    "weight_decay": ("optimizer", 2.0),
}
"""Argument -> cause, and the factor by which it is changed to see what that moves."""
USUAL: Mapping[str, tuple[float, ...]] = {
    "rotary_base": (10000, 500000, 1000000),
    "rotary_percent": (1.0, 0.5, 0.25),
    "norm_epsilon": (1e-5, 1e-6, 1e-8, 1e-12),
    "adam_eps": (1e-8, 1e-6, 1e-5, 1e-15),
}
"""Argument -> values that people use, which are tried as they are."""
CAUSES = {name: cause for name, (cause, _) in FACTORS.items()} | {"rotary_percent": "rotary"}
OF_THE_SETTINGS = (
    "rotary_base",
    "rotary_percent",
    "rotary_interleaved",
    "position_embedding_type",
    "norm_epsilon",
    "layernorm_epsilon",
    "adam_eps",
    "adam_beta1",
    "adam_beta2",
    "weight_decay",
    "lr",
    "min_lr",
    "lr_decay_style",
    "lr_warmup_iters",
    "lr_warmup_fraction",
    "lr_decay_iters",
    "lr_warmup_samples",
    "lr_decay_samples",
    "seed",
    "init_method_std",
    "clip_grad",
    "micro_batch_size",
    "global_batch_size",
    "seq_length",
    "split",
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "hidden_dropout",
    "attention_dropout",
    "normalization",
    "swiglu",
    "add_bias_linear",
    "train_iters",
)
"""Arguments that change numbers, which are compared where a log prints its own."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why curves part.

    Args:
        cause: in a word or two.
        reason: what in the numbers says so, and what to do.
    """

    cause: str
    reason: str


def curve_of(lines: Sequence[LogLine]) -> Curve:
    """The numbers of a log."""
    curve = Curve()
    targets = {
        "lm loss": curve.losses,
        "grad norm": curve.norms,
        "learning rate": curve.rates,
        "global batch size": curve.batches,
    }
    for line in lines:
        for name, target in targets.items():
            if name in line.values:
                target[line.iteration] = line.values[name]
    return curve


class Replay:
    """Runs a command line beside a log, as often as that is needed.

    Args:
        flags: of the run.
        last: iteration of the log that is compared last.
        weights: file of Megatron's initial weights; None: those of the run itself.

    Raises:
        OSError, ValueError: the file cannot be read.

    Parallelism: every method is collective over the world.
    """

    def __init__(self, flags: Sequence[str], last: int, weights: Path | None) -> None:
        self._flags, self._last = list(flags), last
        self._provider = provider_from(weights)
        self.arguments: dict[str, object] = {}
        self.tolerance = HALF_TOLERANCE

    def run(self, extra: Sequence[str] = (), last: int | None = None) -> Curve:
        """Train with further flags; the numbers of every iteration.

        Raises:
            ValueError: the flags do not go together.
        """
        parallel_state.destroy_model_parallel()
        device.release_cached_memory()
        curve, end = Curve(), last or self._last
        with silent():
            initialize_megatron(argv=[*self._flags, *QUIET, *extra])
            config = without_traces(get_all_config())
            if not self.arguments:
                self.arguments = vars(get_args())
            kind = str(config.model_config.compute_dtype)
            self.tolerance = TOLERANCE.get(kind, HALF_TOLERANCE)

            def collect(step: StepReport) -> str | None:
                curve.losses[step.iteration] = step.losses.get("lm loss", float("nan"))
                curve.norms[step.iteration] = step.grad_norm or 0.0
                curve.rates[step.iteration] = step.learning_rate
                curve.batches[step.iteration] = step.batch_size
                return "compared" if step.iteration >= end else None

            pretrain(None, self._provider, all_config=config, on_step=collect)
        return curve


@contextmanager
def silent() -> Iterator[None]:
    """Runs say nothing but warnings: the comparison is what is read."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def without_traces(config: AllConfig) -> AllConfig:
    """The same run, which writes nothing."""
    sections = config.to_dict()
    training = sections["training_config"]
    training["save_checkpoints"] = False
    for name in ("tensorboard_dir", "wandb_project", "log_file", "pipeline_timeline"):
        training[name] = None
    for name in ("report", "log_progress", "profile"):
        if name in training:
            training[name] = False
    return assemble(sections, config.model_type)


def at_lines(curve: Curve, iterations: Sequence[int]) -> Curve:
    """A curve as a log with lines at some iterations only would have it: losses are means."""
    found = Curve()
    for before, iteration in zip((0, *iterations[:-1]), iterations, strict=True):
        inside = [value for it, value in curve.losses.items() if before < it <= iteration]
        if iteration in curve.losses:
            found.losses[iteration] = statistics.fmean(inside)
            found.norms[iteration] = curve.norms[iteration]
            found.rates[iteration] = curve.rates[iteration]
            found.batches[iteration] = curve.batches[iteration]
    return found


def differing_arguments(stated: Mapping[str, str], ours: Mapping[str, object]) -> list[str]:
    """Arguments that the log prints and this run has otherwise."""
    lines = []
    for name in OF_THE_SETTINGS:
        if name not in stated or name not in ours:
            continue
        theirs, mine = stated[name], str(ours[name])
        try:
            is_same = float(theirs) == float(mine)
        except ValueError:
            is_same = theirs.lower() == mine.lower()
        if not is_same:
            lines.append(f"--{name.replace('_', '-')}: {theirs} in the log, {mine} here")
    return lines


def judge(replay: Replay, ours: Curve, theirs: Curve, parted: int) -> Verdict:
    """Say why two curves part (collective).

    Args:
        replay: runs again with settings changed.
        ours: of this run, at the iterations of the log.
        theirs: of the log.
        parted: the first iteration that differs.
    """
    batch, rate = divergence.batch_parting(ours, theirs), divergence.rate_parting(ours, theirs)
    if batch is not None and batch <= parted:
        return Verdict(
            "batch size",
            f"at iteration {batch} a batch has {theirs.batches[batch]:.0f} sequences in the log "
            f"and {ours.batches[batch]:.0f} here; compare --global-batch-size, --rampup-batch-size",
        )
    if rate is not None and rate < parted:
        return Verdict(
            "schedule",
            f"learning rates differ from iteration {rate} on ({theirs.rates[rate]:.6E} in the log, "
            f"{ours.rates[rate]:.6E} here), and losses from {parted} on; compare --lr, "
            "--lr-decay-*, --lr-warmup-* and --train-iters",
        )
    found = _by_settings(replay, ours, theirs, parted)
    if found is not None:
        return found
    shared = divergence.common(ours.losses, theirs.losses)
    if parted != shared[0]:
        return _later(replay, ours, theirs, parted)
    likeness = divergence.likeness(ours, theirs)
    if likeness is None:
        return Verdict(
            "initial weights or data order",
            f"losses differ from the first iteration on; a log of {divergence.FEWEST} or more "
            "lines would tell the two apart",
        )
    if likeness >= divergence.SAME_BATCHES:
        return Verdict(
            "initial weights",
            f"losses differ from the first iteration on, but their ups and downs are alike "
            f"(correlation {likeness:.2f}): the batches are the same. Start both from one "
            "checkpoint (--load), or give --use-cpu-initialization and one --seed to both",
        )
    return Verdict(
        "data order",
        f"losses differ from the first iteration on, and their ups and downs have little in common "
        f"(correlation {likeness:.2f}): the batches are not the same. Compare --data-path, "
        "--split, --seed, --train-iters, --eval-interval, --eval-iters and the tokenizer",
    )


def _later(replay: Replay, ours: Curve, theirs: Curve, parted: int) -> Verdict:
    """The first iterations are the same, and no setting explains the others."""
    if divergence.jumps(ours, theirs, parted, replay.tolerance):
        return Verdict(
            "data order",
            f"everything is the same up to iteration {parted}, whose loss then jumps: its batch is "
            "another one. Compare what ends an epoch: --split, --train-iters, --eval-iters",
        )
    return Verdict(
        "rounding or optimizer",
        "the difference grows slowly from iterations that are the same; compare the optimizer's "
        "options, or allow for other kernels with --tolerance",
    )


def _by_settings(replay: Replay, ours: Curve, theirs: Curve, parted: int) -> Verdict | None:
    """Try settings: usual values as they are, then what a change of each moves."""
    shared = divergence.common(ours.losses, theirs.losses)
    until = [one for one in shared if one <= parted] + [one for one in shared if one > parted][
        :PROBED
    ]
    first_differs = parted == shared[0]
    seen = divergence.deviation(ours, theirs, until)
    best: tuple[float, str] = (0.0, "")
    for name, values in _probes(replay.arguments, first_differs):
        for value, is_usual in values:
            words = [f"--{name.replace('_', '-')}", f"{value:g}"]
            try:
                other = at_lines(replay.run(words, until[-1]), until)
            except (ValueError, SystemExit):
                continue  # a setting that this model does not take
            if is_usual and divergence.parting(other, theirs, replay.tolerance) is None:
                return Verdict(CAUSES[name], f"with {' '.join(words)} the curves are the same")
            moved = divergence.deviation(ours, other, until)
            best = max(best, (divergence.direction(seen, moved), name))
    if best[0] < divergence.SAME_DIRECTION:
        return None
    flag = f"--{best[1].replace('_', '-')}"
    return Verdict(
        CAUSES[best[1]],
        f"what differs goes the way that a change of {flag} moves losses and gradient norms "
        f"(cosine {best[0]:.3f}); {flag} is {replay.arguments[best[1]]} here, compare Megatron's",
    )


def _probes(
    arguments: Mapping[str, object], first_differs: bool
) -> Iterator[tuple[str, list[tuple[float, bool]]]]:
    """Arguments and values to try: (value, whether it is a usual one)."""
    for name in dict.fromkeys((*USUAL, *FACTORS)):
        is_of_the_optimizer = CAUSES[name] in ("optimizer", "epsilon of the optimizer")
        mine = arguments.get(name)
        if (is_of_the_optimizer and first_differs) or not isinstance(mine, int | float) or not mine:
            continue
        if CAUSES[name] == "rotary" and arguments.get("position_embedding_type") != "rope":
            continue
        values = [(value, True) for value in USUAL.get(name, ()) if value != mine]
        if name in FACTORS:
            values.append((mine * FACTORS[name][1], False))
        yield name, values


def compare(
    log: Path,
    flags: Sequence[str],
    *,
    iterations: int,
    tolerance: float | None,
    weights: Path | None,
) -> bool:
    """Compare with a log and print what was found; whether the curves are the same (collective).

    Raises:
        ValueError: the log has no iterations, or none that this run reaches.
        OSError: it cannot be read.
    """
    lines = read_log(log)[:iterations]
    theirs = curve_of(lines)
    shown = [line.iteration for line in lines if line.iteration in theirs.losses]
    if not shown:
        raise ValueError(f"{log} has no 'lm loss' in its lines; name a log of pre-training")
    comm.init_process_group()
    replay = Replay(flags, shown[-1], weights)
    ours = at_lines(replay.run(), shown)
    replay.tolerance = tolerance or replay.tolerance
    if not divergence.common(ours.losses, theirs.losses):
        raise ValueError(
            f"this run does not reach iteration {shown[0]}, the first of {log}; raise --train-iters"
        )
    for line in table(ours, theirs):
        print_rank_0(line)
    for line in differing_arguments(read_arguments(log), replay.arguments):
        print_rank_0(f"argument {line}")
    parted = divergence.parting(ours, theirs, replay.tolerance)
    if parted is None:
        worst = max(divergence.loss_error(ours, theirs, one) for one in ours.losses)
        print_rank_0(
            f"the curves are the same over {len(ours.losses)} lines: largest difference of a loss "
            f"{worst:.2e} (tolerance {replay.tolerance:.0e})"
        )
        return True
    fixed = replay.tolerance
    verdict = judge(replay, ours, theirs, parted)
    print_rank_0(
        f"the curves part at iteration {parted}: loss {ours.losses[parted]:.6f} here, "
        f"{theirs.losses[parted]:.6f} in the log (tolerance {fixed:.0e})"
    )
    print_rank_0(f"likely cause: {verdict.cause}: {verdict.reason}")
    return False


def table(ours: Curve, theirs: Curve) -> list[str]:
    """Lines of both curves."""
    lines = [
        f"{'iteration':>9}  {'loss here':>12} {'in the log':>12} {'difference':>10}  grad norms"
    ]
    for one in divergence.common(ours.losses, theirs.losses):
        norms = f"{ours.norms[one]:.3f} {theirs.norms[one]:.3f}" if one in theirs.norms else "-"
        lines.append(
            f"{one:9d}  {ours.losses[one]:12.6f} {theirs.losses[one]:12.6f} "
            f"{ours.losses[one] - theirs.losses[one]:10.1e}  {norms}"
        )
    return lines
