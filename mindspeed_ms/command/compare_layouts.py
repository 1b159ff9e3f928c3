# SPDX-License-Identifier: Apache-2.0
"""Train a few steps in several layouts from the same weights, and show where they part.

    mpiexec -n 4 mindspeed-ms compare-layouts --yaml configs/tiny_gpt.yaml
    mpiexec -n 4 mindspeed-ms compare-layouts --layouts "tp=4; tp=2,pp=2,sp; pp=2,vpp=2" \
        --steps 5 -- --num-layers 8 --hidden-size 64 ...

All that is not the tool's own is given to the run: a YAML file or Megatron flags. The others are
compared with the first layout, which is data parallelism over all ranks unless ``--layouts`` names
another. Without ``--layouts`` a set is chosen that covers every axis the ranks allow. Initial
weights do not depend on the layout, so after a change of the model this is its self-test: a loss
that differs in one layout only points to a missing or a doubled reduction, and the table names the
first tensor, in the order of the model, whose gradient in the first step differs. The status is 1
if anything differs by more than the tolerance.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mindspore.nn import Cell

from mindspeed_ms.backend import comm, device, memory
from mindspeed_ms.command.train import model_provider
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import ShardSpec, named_parameters, shard_of
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.step_report import StepReport
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.toolkit.launch.command import Parser
from mindspeed_ms.training import initialize_megatron, pretrain, print_rank_0
from mindspeed_ms.training.entry import user_errors

FLAGS = {
    "tp": "--tensor-model-parallel-size",
    "pp": "--pipeline-model-parallel-size",
    "vpp": "--num-virtual-stages-per-pipeline-rank",
    "cp": "--context-parallel-size",
    "ep": "--expert-model-parallel-size",
    "ulysses": "--ulysses-degree-in-cp",
}
SWITCHES = {
    "sp": "--sequence-parallel",
    "zero1": "--use-distributed-optimizer",
    "ring": "--context-parallel-algo=megatron_cp_algo",
    "gather": "--context-parallel-algo=kvallgather_cp_algo",
    "hybrid": "--context-parallel-algo=hybrid_cp_algo",
}
COVERING = (
    "",
    "tp=2",
    "tp=2,sp",
    "pp=2",
    "pp=2,vpp=2",
    "tp=2,pp=2,sp",
    "pp=4",
    "zero1",
    "cp=2",
    "cp=2,ring",
    "tp=2,cp=2,sp,ring",
)
"""Layouts to choose from; data parallelism takes the ranks that are left."""

QUIET = ("--log-interval", "1000000", "--eval-iters", "0", "--logging-level", "30")


@dataclass(slots=True)
class Run:
    """What a layout did; on every rank."""

    layout: str
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_megabytes: float = 0.0
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the first step, whole, by name; on rank 0 only, empty when the optimizer shards them."""
    refusal: str = ""


def layout_flags(layout: str) -> list[str]:
    """Command line of a layout such as ``tp=2,pp=2,sp``.

    Raises:
        ValueError: a word that means nothing.
    """
    flags = [FLAGS["tp"], "1", FLAGS["pp"], "1"]  # a YAML file may say otherwise
    for word in filter(None, (part.strip() for part in layout.split(","))):
        name, _, value = word.partition("=")
        if name in FLAGS and value.isdigit():
            flags += [FLAGS[name], value]
        elif word in SWITCHES:
            flags.append(SWITCHES[word])
        elif name != "dp":  # data parallelism takes what is left
            known = ", ".join([*(f"{name}=N" for name in FLAGS), *SWITCHES])
            raise ValueError(f"layout {layout!r} contains {word!r}; use {known}, separated by ,")
    return flags


def ranks_of(layout: str) -> int:
    """Ranks that one copy of the model needs."""
    sizes = dict(word.strip().split("=") for word in layout.split(",") if "=" in word)
    return int(sizes.get("tp", 1)) * int(sizes.get("pp", 1)) * int(sizes.get("cp", 1))


def covering_layouts(world_size: int) -> list[str]:
    """Layouts that use every axis the number of ranks allows."""
    return [
        layout
        for layout in COVERING
        if world_size % ranks_of(layout) == 0 and (layout != "zero1" or world_size > 1)
    ]


def joined(parts: Sequence[dict[str, tuple[np.ndarray, ShardSpec]]]) -> dict[str, np.ndarray]:
    """Whole arrays from those of all ranks; a tied copy is left out."""
    shards: dict[str, dict[int, tuple[np.ndarray, ShardSpec]]] = {}
    for part in parts:
        for name, (array, shard) in part.items():
            if not shard.shared:
                shards.setdefault(name, {})[shard.partition_rank] = (array, shard)
    return {
        name: found[0][1].join([found[rank][0] for rank in sorted(found)])
        for name, found in shards.items()
    }


def whole_gradients(chunks: Sequence[Cell]) -> dict[str, np.ndarray]:
    """Gradients of the step, joined over tensor and pipeline ranks, on rank 0.

    Parallelism: collective over the world.
    """
    own = {}
    if parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0:
        own = {
            name: (memory.as_numpy(param.main_grad).astype(np.float32), shard_of(param))
            for chunk in chunks
            for name, param in named_parameters(chunk)
        }
    parts = comm.all_gather_object(own)
    return joined(parts) if comm.get_rank() == 0 else {}


def forget_peak() -> None:
    """Start the peak of resident memory anew, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_megabytes() -> float:
    """Largest resident set since ``forget_peak``, or of the process."""
    status = Path("/proc/self/status")
    if not device.is_ascend() and status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return device.memory_stats()["peak"] / 2**20


def train(layout: str, flags: Sequence[str], steps: int) -> Run:
    """Train a few steps in a layout; collective over the world."""
    run, chunks = Run(layout or "dp"), []
    parallel_state.destroy_model_parallel()
    device.release_cached_memory()
    forget_peak()
    try:
        initialize_megatron(
            argv=[*flags, *layout_flags(layout), *QUIET, "--exit-interval", str(steps)]
        )
        config = get_all_config()
    except (ValueError, RuntimeError) as error:
        print_rank_0(f"error: {error}")
        run.refusal = "refused, see above"
        return run
    is_sharded = config.shards_optimizer

    def provider(pre_process: bool, post_process: bool) -> GPTModel:
        model = model_provider(pre_process, post_process)
        chunks.append(model)
        return model

    def collect(step: StepReport) -> None:
        run.losses.append(next(iter(step.losses.values())))
        run.grad_norms.append(step.grad_norm or 0.0)
        run.seconds.append(step.seconds)
        if step.iteration == 1 and not is_sharded:
            run.gradients = whole_gradients(chunks)

    pretrain(None, provider, all_config=config, on_step=collect)
    run.peak_megabytes = max(comm.all_gather_object(peak_megabytes()))
    return run


def first_difference(run: Run, reference: Run, tolerance: float) -> str:
    """The first tensor, in the order of the model, whose gradient differs; empty for none."""
    scale = max((float(np.abs(g).max()) for g in reference.gradients.values()), default=1.0)
    for name, expected in reference.gradients.items():
        if not run.gradients:
            return ""
        if name not in run.gradients or run.gradients[name].shape != expected.shape:
            return f"{name} (missing or of another shape)"
        error = float(np.abs(run.gradients[name] - expected).max())
        if not error <= tolerance * max(scale, float(np.abs(expected).max())):
            return f"{name} ({error:.1e})"
    return ""


def largest_error(values: Sequence[float], expected: Sequence[float]) -> float:
    """Largest relative difference; infinite when the numbers of steps differ or one is NaN."""
    if len(values) != len(expected) or not np.isfinite(values).all():
        return float("inf")
    return max(
        (abs(a - b) / max(abs(b), 1e-12) for a, b in zip(values, expected, strict=True)),
        default=0.0,
    )


def table(runs: Sequence[Run], tolerance: float) -> tuple[list[str], bool]:
    """Lines of the table, and whether all layouts agree."""
    reference, agree = runs[0], True
    lines = [
        f"{'layout':<18} {'first loss':>11} {'last loss':>11} {'loss error':>10} "
        f"{'norm error':>10} {'ms/step':>8} {'MB/rank':>8}  first gradient that differs"
    ]
    for run in runs:
        if run.refusal:
            lines.append(f"{run.layout:<18} {run.refusal}")
            continue
        loss_error = largest_error(run.losses, reference.losses)
        norm_error = largest_error(run.grad_norms, reference.grad_norms)
        differing = first_difference(run, reference, tolerance)
        # Norms grow apart faster than losses; they are shown, the loss decides.
        agree = agree and loss_error <= tolerance and not differing
        lines.append(
            f"{run.layout:<18} {run.losses[0]:11.6f} {run.losses[-1]:11.6f} {loss_error:10.1e} "
            f"{norm_error:10.1e} {1e3 * statistics.median(run.seconds):8.1f} "
            f"{run.peak_megabytes:8.0f}  {differing or '-'}"
        )
    return lines, agree


def compare(
    flags: Sequence[str], layouts: Sequence[str] | None, steps: int, tolerance: float
) -> bool:
    """Run the layouts and print the table on rank 0; whether they agree there.

    Raises:
        ValueError: a layout that cannot be read, or the first one was refused.

    Parallelism: collective over the world.
    """
    comm.init_process_group()
    chosen = list(layouts or covering_layouts(comm.get_world_size()))
    for layout in chosen:
        layout_flags(layout)
    runs = [train(layout, flags, steps) for layout in chosen]
    if runs[0].refusal:
        raise ValueError(
            f"the layout to compare with ({runs[0].layout}) was refused; name another one first in "
            "--layouts"
        )
    lines, agree = table(runs, tolerance)
    for line in lines:
        print_rank_0(line)
    return agree if comm.get_rank() == 0 else True


def main() -> int:
    """Compare; the status says whether the layouts agree."""
    parser = Parser.of(__doc__)
    parser.add_argument("--layouts", help="separated by ; as in 'tp=2,pp=2,sp; pp=2,vpp=2'")
    parser.add_argument("--steps", type=int, default=4, help="training steps per layout")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative")
    arguments, flags = parser.parse_known_args()
    layouts = arguments.layouts.split(";") if arguments.layouts else None
    flags = [flag for flag in flags if flag != "--"]
    with user_errors():
        agree = compare(flags, layouts, arguments.steps, arguments.tolerance)
    return 0 if agree else 1
