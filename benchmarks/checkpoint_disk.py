# SPDX-License-Identifier: Apache-2.0
"""Seconds a run takes to save and to load a checkpoint, beside what the disk needs for the bytes.

    python benchmarks/checkpoint_disk.py --megabytes 1500 --rounds 3
    python benchmarks/checkpoint_disk.py --formats ckpt megatron --folder /a/folder/of/the/disk

Every round saves a checkpoint as a run does (parameters and optimizer, checksums, brought to the
disk), and writes the same files again with ``dd conv=fsync``; then it drops them from the system's
memory and loads them, and reads them with ``dd``, once past that memory (``iflag=direct``) and once
through it, of which the faster counts. The best round counts of each. ``save_share`` and
``load_share`` are the seconds of ``dd`` over those of the run: 1 is the speed of the disk. Formats:
``ckpt`` and ``torch_dist`` are what ``--ckpt-format`` names, of which ``torch_dist`` writes
safetensors; ``megatron`` and ``huggingface`` are loaded only, from a conversion of the first.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from checkpoint_conversion import (
    TARGETS,
    config_for,
    converted,
    forgotten,
    megabytes_in,
    removed,
    say,
    trained,
)

from mindspeed_ms.config import AllConfig

SAVED = ("ckpt", "torch_dist")
LOADED = {"megatron": TARGETS["megatron tp2"], "huggingface": TARGETS["hugging face"]}
BLOCK = "8M"
LOADED_IN = re.compile(r"successfully loaded .*MB in ([\d.]+) s")
SAVED_IN = re.compile(r"save-checkpoint \.+: \([\d.]+, ([\d.]+)\)")


def seconds_of_dd(folder: Path, target: Path | None, *options: str) -> float:
    """Seconds to write the files below a folder again, or, without a target, to read them."""
    total = 0.0
    for path in folder.rglob("*"):
        if path.is_file():
            copy = os.devnull if target is None else str(target)
            command = ["dd", f"if={path}", f"of={copy}", f"bs={BLOCK}", *options]
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            total += time.perf_counter() - started
            if target is not None:
                target.unlink()
    return total


def only(pattern: re.Pattern[str], text: str) -> float:
    """The last number a run has told.

    Raises:
        RuntimeError: it told none.
    """
    found = pattern.findall(text)
    if not found:
        raise RuntimeError(f"the run did not say {pattern.pattern!r}")
    return float(found[-1])


def measure_save(target: Path, form: str, config: AllConfig) -> dict[str, float]:
    """Seconds of the second save of a run, and of ``dd``; leaves the checkpoint."""
    flags = ["--train-iters", "2", "--save-interval", "1", "--ckpt-format", form]
    text = trained(config, *flags, "--save", str(target), "--keep-checkpoint-max", "1")
    os.sync()
    return {
        "save": only(SAVED_IN, text) / 1e3,
        "dd_write": seconds_of_dd(target, target.with_suffix(".copy"), "conv=fsync"),
    }


def measure_load(source: Path, form: str, config: AllConfig) -> dict[str, float]:
    """Seconds to load a checkpoint that lies on the disk alone, and of ``dd``."""
    flags = ["--train-iters", "2", "--skip-train", "--load", str(source)]
    if form in LOADED:
        flags += ["--finetune"]
    os.sync()
    forgotten(source)
    times = {"load": only(LOADED_IN, trained(config, *flags))}
    forgotten(source)
    times["dd_read"] = seconds_of_dd(source, None)
    times["dd_direct"] = seconds_of_dd(source, None, "iflag=direct")
    return times


def row_of(form: str, megabytes: float, times: dict[str, list[float]]) -> dict[str, Any]:
    """What is printed."""
    best = {name: min(seconds) for name, seconds in times.items()}
    read = min(best["dd_read"], best["dd_direct"])
    row: dict[str, Any] = {"format": form, "megabytes": round(megabytes, 1)}
    if "save" in best:
        row["save_megabytes_per_second"] = round(megabytes / best["save"])
        row["dd_write_megabytes_per_second"] = round(megabytes / best["dd_write"])
        row["save_share"] = round(best["dd_write"] / best["save"], 2)
    row["load_megabytes_per_second"] = round(megabytes / best["load"])
    row["dd_read_megabytes_per_second"] = round(megabytes / read)
    row["load_share"] = round(read / best["load"], 2)
    row["rounds"] = {name: [round(value, 3) for value in values] for name, values in times.items()}
    row["load_average"] = round(os.getloadavg()[0], 1)
    return row


def main() -> None:
    """Print one line of JSON per format."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    every = [*SAVED, *LOADED]
    parser.add_argument("--formats", nargs="+", choices=every, default=every)
    parser.add_argument("--megabytes", type=int, default=500, help="of the model in fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    args = parser.parse_args()
    config = config_for(args.megabytes)
    for form in args.formats:
        times: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            target = Path(name, "checkpoint")
            if form in LOADED:
                measure_save(Path(name, "own"), SAVED[0], config)
                converted(Path(name, "own"), target, LOADED[form])
            for _ in range(args.rounds):
                measured = {}
                if form in SAVED:
                    if target.exists():
                        removed(target)
                    measured = measure_save(target, form, config)
                megabytes = megabytes_in(target)
                measured |= measure_load(target, form, config)
                for key, value in measured.items():
                    times.setdefault(key, []).append(value)
        say(row_of(form, megabytes, times))


if __name__ == "__main__":
    main()
