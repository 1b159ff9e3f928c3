# SPDX-License-Identifier: Apache-2.0
"""Build sdist and wheel, install the wheel into empty environments, and train there.

    python tools/try_wheel.py --work DIR
    python tools/try_wheel.py --work DIR --python python3.10 --python python3.12

The wheel is built from the sdist. Each interpreter gets an environment of its own with nothing but
the wheel and what it requires; the command is then used in a folder of its own, with one rank and,
through MPI, with two. The status is 1 at the first thing that is not right.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mindspeed_ms.toolkit.launch.command import Parser

ROOT = Path(__file__).resolve().parents[1]
LEVELS = ("generic", "avx2", "avx512") if os.uname().machine == "x86_64" else ("generic",)
IN_WHEEL = (
    *(f"mindspeed_ms/ops/cpu/_kernels_{level}.so" for level in LEVELS),
    "mindspeed_ms/data/_kernels_indices.so",
    "mindspeed_ms/formats/containers/_kernels_digest.so",
    "mindspeed_ms/shipped/configs/tiny_gpt.yaml",
    "mindspeed_ms/shipped/configs/38BV3/model_38BV3.yaml",
    "mindspeed_ms/shipped/data/tiny/tok.model",
    "mindspeed_ms/shipped/data/tiny/tiny_text_document.bin",
    "mindspeed_ms/backend/torchrun/bin/torchrun",
    "mindspeed_ms/engine/report/page.html",
)
IN_SDIST = (
    "pyproject.toml",
    "setup.py",
    "pretrain_gpt.py",
    "pretrain_gpt.sh",
    "configs/tiny_gpt.yaml",
    "data/tiny/tok.model",
    "tools/parity.py",
    "mindspeed_ms/ops/cpu/csrc/common.h",
)
COMMANDS = (
    "mindspeed-ms = mindspeed_ms.command.dispatch:main",
    "mindspeed-torchrun = mindspeed_ms.backend.torchrun.run:main",
    "mindspeed-msrun = mindspeed_ms.backend.torchrun.msrun:main",
)
TRAIN = "train --yaml tiny_gpt --train-iters 12 --data-cache-path cache".split()
ONE_RANK = "--tensor-model-parallel-size 1 --save out --save-interval 12".split()


class TrialError(Exception):
    """Something is not as it must be."""


def call(words: Sequence[str | Path], folder: Path | None = None) -> str:
    """Run a program without what this source tree would lend it; return its output.

    Raises:
        TrialError: it ends with another status than 0.
    """
    lent = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    without = [word for name in lent for word in ("-u", name)]
    started = time.monotonic()
    done = subprocess.run(
        ["env", *without, *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    told = " ".join(
        Path(word).name if index == 0 else str(word) for index, word in enumerate(words)
    )
    say(f"{time.monotonic() - started:6.1f} s  {told[:120]}")
    if done.returncode:
        raise TrialError(f"status {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def say(line: str) -> None:
    """A line for the reader."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def require(names: Sequence[str], found: Sequence[str], what: str) -> None:
    """Raise a TrialError if a file is missing."""
    missing = sorted(set(names) - set(found))
    if missing:
        raise TrialError(f"{what} lacks {', '.join(missing)}")


def build(work: Path) -> Path:
    """The wheel of the sdist of this tree, looked through."""
    tools = work / "build"
    call([sys.executable, "-m", "venv", tools])
    call([tools / "bin/pip", "install", "-q", "build"])
    shutil.rmtree(work / "dist", ignore_errors=True)
    call([tools / "bin/python", "-m", "build", "--outdir", work / "dist", ROOT])
    (sdist,) = (work / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as files:
        require(IN_SDIST, [name.partition("/")[2] for name in files.getnames()], sdist.name)
    (wheel,) = (work / "dist").glob("*.whl")
    if "-py3-none-" not in wheel.name or wheel.name.endswith("-any.whl"):
        raise TrialError(f"{wheel.name} is not for every Python of this platform")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        require(IN_WHEEL, names, wheel.name)
        made = [name for name in names if "/cache/" in name or name.startswith("tests")]
        (entries,) = (name for name in names if name.endswith("entry_points.txt"))
        require(COMMANDS, files.read(entries).decode().splitlines(), "the list of commands")
    if made:
        raise TrialError(f"{wheel.name} holds {made[0]}, which is not part of the package")
    say(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB")
    return wheel


def use(wheel: Path, python: str, work: Path) -> None:
    """Install the wheel for an interpreter and use it."""
    version = call([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    place, folder = work / f"venv{version}", work / f"used{version}"
    for old in (place, folder):
        shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True)
    call([python, "-m", "venv", place])
    call([place / "bin/pip", "install", "-q", f"{wheel}[cpu]"])
    command = place / "bin/mindspeed-ms"
    for line in call([command, "doctor"], folder).splitlines():
        say(f"          {line}")
    alone = call([command, *TRAIN, *ONE_RANK], folder)
    together = call([place / "bin/mpiexec", "-n", "2", command, *TRAIN], folder)
    for output in (alone, together):
        (line,) = (line for line in output.splitlines() if "on validation set" in line)
        say(f"          {line.strip()}")
    losses = {output.split("lm loss value: ")[1].split()[0][:6] for output in (alone, together)}
    if len(losses) != 1:
        raise TrialError(f"one rank and two ranks do not agree: {losses}")
    call([command, "evaluate", "--load", "out"], folder)
    call([command, "configs", "copy", "tiny_gpt", "mine.yaml"], folder)
    call([command, "plan", "--yaml", "mine.yaml", "--world-size", "8"], folder)
    call([command, "convert", "out", "as_megatron", "--to", "megatron", "--no-verify"], folder)
    call([command, "completion", "bash"], folder)
    say(f"Python {version}: ok")


def main() -> int:
    """Build once, use with every interpreter."""
    parser = Parser.of(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--python", action="append", help="interpreter; repeatable; default this")
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        wheel = build(work)
        for python in given.python or [sys.executable]:
            use(wheel, python, work)
    except TrialError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
