# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of checkpoint work beside plain copies: converting, loading, saving.

    python benchmarks/checkpoint_conversion.py conversions loading stall --megabytes 600
    python benchmarks/checkpoint_conversion.py conversions --with-optimizer --cold

Everything takes turns with copies of the same files, one that is brought to the disk (as
checkpoints are) and one that is left to the system's memory, and is run as a user runs it: the
start of Python counts in conversions. One line of JSON per measurement, with the seconds of every
round; figures are taken from the best of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mindspeed_ms.config import AllConfig
from mindspeed_ms.formats import own_writer
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.source import Source
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.families import llama
from mindspeed_ms.plan.region import Region, Span
from mindspeed_ms.training import conversion as engine

ROOT = Path(__file__).resolve().parents[1]
LAYERS, HEADS, GROUPS, VOCABULARY = 8, 16, 4, 8192
PARTS = ("conversions", "loading", "stall")
TARGETS = {
    "megatron tp2": ["--to", "megatron", "--tensor-model-parallel-size", "2"],
    "own format": ["--to", "mindspeed_ms"],
    "hugging face": ["--to", "huggingface"],
}
DISTRIBUTED = "megatron distributed optimizer"
ALLOWED_BESIDE = 300
"""Megabytes a conversion may take beside twice the largest tensor."""

BUSY = 15.0
"""Percent of the processors in use at which others disturb."""

SAVES = 3
"""Checkpoints of the run whose stall is measured; the first one takes its memory."""

MEMORY_COPY = """
import time, sys, numpy
source, target = (numpy.ones(int(sys.argv[1]), numpy.uint8) for _ in range(2))
seconds = []
for _ in range(5):
    started = time.perf_counter()
    numpy.copyto(target, source)
    seconds.append(time.perf_counter() - started)
print(min(seconds))
"""


# --- checkpoints ------------------------------------------------------------------------------


def config_for(megabytes: int) -> AllConfig:
    """A model of about this size in fp32."""
    hidden = max(256, round((megabytes * 1e6 / 4 / LAYERS / 12) ** 0.5 / 128 - 0.5) * 128)
    return llama.FAMILY.config(
        {
            "vocab_size": VOCABULARY,
            "num_hidden_layers": LAYERS,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_attention_heads": HEADS,
            "num_key_value_heads": GROUPS,
            "max_position_embeddings": 1024,
        }
    )


def make_checkpoint(folder: Path, config: AllConfig, with_optimizer: bool) -> Path:
    """A checkpoint of random numbers in this project's format."""
    noise = folder / "noise.bin"
    rng = np.random.default_rng(0)
    with noise.open("wb") as file:  # in parts: children are charged with this process's peak
        for _ in range(64):
            rng.standard_normal(1 << 20, np.float32).tofile(file)
    catalog = Catalog({}, {"iteration": 1, "optimizer": {"num_steps": 1}}, "noise")
    spec = gpt_spec(config.model_config)
    for parameter in spec.parameters():
        for kind in ("", *(("exp_avg.", "exp_avg_sq.") if with_optimizer else ())):
            piece = StoredPiece(Span.all_of(Region.whole(parameter.shape)), "F32", noise, 0)
            tensor = StoredTensor(parameter.shape, "F32", [piece])
            catalog.tensors[f"{kind}{parameter.name}"] = tensor
    target = folder / "own"
    own_writer.write(
        Source(catalog, spec), config, target, lambda count: None, vocab_size=VOCABULARY
    )
    noise.unlink()
    return target


def sources_of(folder: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """The same model in every format that is converted from."""
    with_optimizer = arguments.with_optimizer
    config = config_for(arguments.megabytes)
    sources = {"own format": make_checkpoint(folder, config, with_optimizer)}
    made = {"megatron tp2": TARGETS["megatron tp2"]}
    if with_optimizer:
        made[DISTRIBUTED] = [*TARGETS["megatron tp2"], "--use-distributed-optimizer"]
    else:
        made["hugging face"] = TARGETS["hugging face"]
    for name, flags in made.items():
        if any(arguments.only in f"{name} -> {target}" for target in TARGETS):
            sources[name] = folder / name.replace(" ", "_")
            converted(sources["own format"], sources[name], flags)
    return sources


def megabytes_in(folder: Path) -> float:
    """Size of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


# --- what is timed ----------------------------------------------------------------------------


def settled(patience: float) -> None:
    """Wait for a moment in which nobody else computes, at most so many seconds."""
    stop = time.monotonic() + patience
    while time.monotonic() < stop and psutil.cpu_percent(0.3) > BUSY:
        pass


def copied(source: Path, target: Path) -> tuple[float, float]:
    """Seconds of a plain copy, and of the same copy brought to the disk."""
    started = time.perf_counter()
    shutil.copytree(source, target)
    plain = time.perf_counter() - started
    for path in target.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    seconds = time.perf_counter() - started
    removed(target)
    return plain, seconds


def removed(folder: Path) -> None:
    """Remove a folder and let the disk finish, so that what follows starts as anything else."""
    shutil.rmtree(folder)
    os.sync()


def forgotten(folder: Path) -> None:
    """Drop the files below a folder from the system's memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def converted(source: Path, target: Path, flags: list[str]) -> tuple[float, float]:
    """Seconds and peak megabytes of a conversion, the start of Python included."""
    command = [sys.executable, str(ROOT / "tools" / "convert_ckpt"), "convert"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, str(source), str(target), *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the conversion of {source} failed with status {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


def beside_copies(
    source: Path, folder: Path, work: Callable[[], float], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Some work and copies of its source in turns.

    Returns:
        Seconds of every round, and how fast the work was in terms of the copies.
    """
    size = megabytes_in(source)
    times: dict[str, list[float]] = {"seconds": [], "copy": [], "copy_to_disk": []}
    for _ in range(arguments.rounds):
        settled(arguments.patience)
        if arguments.cold:
            forgotten(source)
        plain, to_disk = copied(source, folder / "copy")
        times["copy"].append(plain)
        times["copy_to_disk"].append(to_disk)
        settled(arguments.patience)
        if arguments.cold:
            forgotten(source)
        times["seconds"].append(work())
    best = {key: min(values) for key, values in times.items()}
    return {
        "megabytes": round(size, 1),
        "megabytes_per_second": round(size / best["seconds"]),
        "copy_to_disk_megabytes_per_second": round(size / best["copy_to_disk"]),
        "copy_megabytes_per_second": round(size / best["copy"]),
        "share_of_copy_to_disk": round(best["copy_to_disk"] / best["seconds"], 2),
        "share_of_copy": round(best["copy"] / best["seconds"], 2),
        "source_in_memory": not arguments.cold,
        "rounds": {key: [round(value, 3) for value in values] for key, values in times.items()},
        "load_average": round(os.getloadavg()[0], 1),
    }


def measure_conversions(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every source into every target."""
    rows = []
    sources = sources_of(folder, arguments)
    catalog, _ = engine.open_source(sources["own format"], engine.ConvertOptions())
    largest = max(tensor.num_bytes for tensor in catalog.tensors.values()) / 1e6
    for source, path in sources.items():
        for target, flags in TARGETS.items():
            if arguments.with_optimizer and target == "hugging face":
                continue
            if arguments.only not in f"{source} -> {target}":
                continue
            peaks: list[float] = []

            def work(path: Path = path, flags: list[str] = flags, peaks: list = peaks) -> float:
                seconds, peak = converted(path, folder / "out", flags)
                peaks.append(peak)
                removed(folder / "out")
                return seconds

            rows.append(
                {
                    "what": "conversion",
                    "from": source,
                    "to": target,
                    "with_optimizer": arguments.with_optimizer,
                    **beside_copies(path, folder, work, arguments),
                    "peak_megabytes": round(max(peaks)),
                    "allowed_megabytes": round(2 * largest + ALLOWED_BESIDE),
                }
            )
            say(rows[-1])
    return rows


# --- runs -------------------------------------------------------------------------------------


def trained(config: AllConfig, *flags: str) -> str:
    """What a run of ``pretrain_gpt.py`` prints.

    Raises:
        RuntimeError: it failed.
    """
    model = config.model_config
    sizes = (
        f"--num-layers {model.num_layers} --hidden-size {model.hidden_size} --ffn-hidden-size "
        f"{model.ffn_hidden_size} --num-attention-heads {HEADS} --group-query-attention "
        f"--num-query-groups {GROUPS} --padded-vocab-size {VOCABULARY} --vocab-size "
        f"{VOCABULARY - 1} --seq-length 32 --max-position-embeddings 1024 --micro-batch-size 1 "
        "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear "
        "--untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0 --lr 1e-4 "
        "--mock-data --tokenizer-type NullTokenizer --eval-iters 0"
    )
    command = [sys.executable, str(ROOT / "pretrain_gpt.py"), *sizes.split(), *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stderr[-2000:]}")
    return result.stdout


def measure_loading(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A run's own checkpoint and the same in Megatron's form, with optimizer state."""
    config = config_for(arguments.megabytes)
    own = folder / "run"
    trained(config, "--train-iters", "1", "--save", str(own), "--save-interval", "1")
    sources = {"own format": own}
    for name, flags in (("megatron tp2", []), (DISTRIBUTED, ["--use-distributed-optimizer"])):
        sources[name] = folder / name.replace(" ", "_")
        converted(own, sources[name], [*TARGETS["megatron tp2"], *flags])
    rows = []
    for source, path in sources.items():

        def work(path: Path = path) -> float:
            text = trained(config, "--train-iters", "1", "--skip-train", "--load", str(path))
            match = re.search(r"successfully loaded .*MB in ([\d.]+) s", text)
            assert match is not None, "the run did not say how long loading took"
            return float(match[1])

        rows.append(
            {
                "what": "loading",
                "from": source,
                **beside_copies(path, folder, work, arguments),
            }
        )
        say(rows[-1])
    return rows


def measure_stall(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """How long training waits for a save in the background."""
    config = config_for(arguments.megabytes)
    every = 10
    waited: list[list[float]] = []
    copies = []
    for number in range(arguments.rounds):
        target = folder / f"run{number}"
        steps = ["--train-iters", str(SAVES * every), "--save-interval", str(every)]
        settled(arguments.patience)
        text = trained(config, *steps, "--save", str(target), "--async-save")
        waited.append([float(item) for item in re.findall(r"training waited ([\d.]+) s", text)])
        newest = target / f"iter_{SAVES * every:07d}"
        size = megabytes_in(newest)
        command = [sys.executable, "-c", MEMORY_COPY, str(int(size * 1e6))]
        copies.append(float(subprocess.run(command, capture_output=True, check=True).stdout))
        removed(target)
    first = [seconds[0] for seconds in waited]
    later = [value for seconds in waited for value in seconds[1:]]
    row = {
        "what": "stall",
        "megabytes": round(size, 1),
        "first_seconds": round(min(first), 3),
        "later_seconds": round(min(later), 3),
        "memory_copy_seconds": round(min(copies), 3),
        "stall_in_memory_copies": round(min(later) / min(copies), 2),
        "rounds": {"waited": waited, "memory_copy": [round(value, 3) for value in copies]},
        "median_of_later_seconds": round(statistics.median(later), 3),
        "load_average": round(os.getloadavg()[0], 1),
    }
    say(row)
    return [row]


# --- output -----------------------------------------------------------------------------------


def say(row: dict[str, Any]) -> None:
    """A line of JSON."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars: bandwidth of the work and of the copies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if "copy_megabytes_per_second" in row]
    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.6 * len(rows)), layout="constrained")
    names = [" -> ".join(row[key] for key in ("from", "to") if key in row) for row in rows]
    sides = (
        ("megabytes_per_second", "this project"),
        ("copy_to_disk_megabytes_per_second", "copy, brought to the disk"),
        ("copy_megabytes_per_second", "copy, left to the system's memory"),
    )
    for number, (key, label) in enumerate(sides):
        places = [place + 0.25 * number for place in range(len(rows))]
        axis.barh(places, [row[key] for row in rows], height=0.25, label=label)
    axis.set_yticks(
        [place + 0.25 for place in range(len(rows))],
        [f"{row['what']}: {name}" for row, name in zip(rows, names, strict=True)],
    )
    axis.invert_yaxis()
    axis.set_xlabel("MB/s")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure the parts of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--megabytes", type=int, default=600, help="of the model in fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--with-optimizer", action="store_true", help="convert moments as well")
    parser.add_argument("--cold", action="store_true", help="sources come from the disk")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait before every measurement until nobody else computes, at most so long",
    )
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--png", type=Path, help="write a picture here (needs matplotlib)")
    parser.add_argument("--only", metavar="TEXT", default="", help="conversions named like this")
    arguments = parser.parse_args()
    if wrong := set(arguments.parts) - set(PARTS):
        parser.error(f"{sorted(wrong)[0]} is none of {', '.join(PARTS)}")
    measures = {
        "conversions": measure_conversions,
        "loading": measure_loading,
        "stall": measure_stall,
    }
    rows = []
    for part in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            rows += measures[part](Path(name), arguments)
    if arguments.png:
        draw(rows, arguments.png)


if __name__ == "__main__":
    main()
