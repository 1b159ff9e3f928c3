# SPDX-License-Identifier: Apache-2.0
"""A training run that is ended at random moments and started again until it is through.

Each start goes on from the newest complete checkpoint, and the losses are, bit for bit, those of
the run that nobody disturbed. Nothing stays: no process, no shared memory, no temporary file.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from jobs import REPOSITORY, Job, abandoned_memory, attack_each, launch_words

DATA = REPOSITORY / "data" / "tiny"
YAML = REPOSITORY / "configs" / "tiny_gpt.yaml"
LINE = re.compile(r"iteration +(\d+)/ +\d+ \|.* lm loss: (\S+) \|.* grad norm: (\S+) \|")
SECONDS = 40.0
"""For the end of all after a signal, on a busy machine."""
KINDS = {
    "plain": (),
    "async": ("--async-save",),
    "lora": ("--use-lora", "--lora-rank", "4"),
    "handler": ("--exit-signal-handler",),
}
SIGNALS = ("KILL", "KILL", "TERM", "INT", "HUP", "STOP KILL")


def training_words(folder, iterations, *more):
    """A short run with dropout that evaluates and saves."""
    return [
        *(REPOSITORY / "pretrain_gpt.py", "--yaml", YAML, "--train-iters", str(iterations)),
        *("--tensor-model-parallel-size", "1", "--global-batch-size", "4", "--log-interval", "1"),
        *("--hidden-dropout", "0.1", "--attention-dropout", "0.1", "--lr-warmup-iters", "2"),
        *("--eval-interval", "7", "--eval-iters", "1", "--use-distributed-optimizer"),
        *("--data-path", DATA / "tiny_text_document", "--tokenizer-model", DATA / "tok.model"),
        *("--data-cache-path", folder / "cache", *more),
    ]


class Run:
    """A run of one launcher and kind in a folder of its own.

    Args:
        launcher: as of ``jobs.launch_words``.
        more: flags of the kind.
        folder: it is empty.
        iterations: of the run.
    """

    def __init__(self, launcher, more, folder, iterations=24, ranks=2):
        self.launcher, self.folder, self.iterations = launcher, folder, iterations
        self.ranks = 1 if launcher == "plain" else ranks
        self.more = more
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.memory = abandoned_memory()
        started = time.monotonic()
        self.expected = self.finish(folder / "undisturbed")
        self.seconds = time.monotonic() - started
        assert sorted(self.expected) == list(range(1, iterations + 1)), self.expected
        self.seen = {}
        self.done = Counter()

    def start(self, save):
        self.temporary.mkdir(exist_ok=True)
        shutil.rmtree(self.folder / "log", ignore_errors=True)
        saving = ("--save", save, "--load", save, "--save-interval", "3")
        more = ("--keep-checkpoint-max", "2", *self.more)
        words = training_words(self.folder, self.iterations, *saving, *more)
        launch = launch_words(self.launcher, self.ranks, self.folder)
        return Job([*launch, *words], self.folder, TMPDIR=str(self.temporary))

    def finish(self, save):
        """Losses of a run to its end."""
        job = self.start(save)
        status = job.wait(300)
        text = job.text()
        assert status == 0, f"{status}: {text[-3000:]}"
        assert not job.end(), text[-3000:]
        job.console.unlink()
        self.check_leftovers("after a whole run", "KILL")
        return self.losses(text)

    def losses(self, text):
        found = {}
        for number, loss, norm in LINE.findall(text):
            assert found.setdefault(int(number), (loss, norm)) == (loss, norm), number
        return found

    def kill(self, draw, save):
        """Start, and end it at a random moment."""
        victim = draw.choice(self.victims())
        names = draw.choice(SIGNALS).split()
        moment = draw.uniform(0.1, 0.8) * self.seconds
        job = self.start(save)
        job.wait(moment)
        deadline = time.monotonic() + 20
        for name in names:
            while not job.send(victim, signal.Signals[f"SIG{name}"]):
                if job.process.poll() is not None or time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            time.sleep(0.5 if len(names) > 1 else 0)
        told = f"{self.launcher} {victim} {' '.join(names)} after {moment:.2f} s"
        status = job.wait(SECONDS)
        job.seconds_until_gone(SECONDS)
        text, logs = job.text(), job.logs()
        left = job.end()
        job.console.unlink()
        told = f"{told}: status {status}\n{text[-3000:]}"
        assert status is not None and not left, f"{left} stayed: {told}"
        words = logs if self.launcher == "msrun" else text  # its own are MindSpore's
        assert "Traceback" not in words, told
        is_through = self.iterations in self.losses(text)
        has_saved = "--exit-signal-handler" in self.more and "KILL" not in names
        assert status != 0 or is_through or has_saved, told
        self.check_leftovers(told, names[-1])
        for number, figures in self.losses(text).items():
            assert self.expected[number] == figures, f"iteration {number}: {told}"
        self.done["finished before" if status == 0 else f"{victim} {' '.join(names)}"] += 1
        return is_through

    def victims(self):
        if self.launcher == "plain":
            return ["launcher"]
        inner = "proxy" if self.launcher == "mpiexec" else "scheduler"
        return ["launcher", inner, "0", "1"]

    def check_leftovers(self, told, name):
        assert not abandoned_memory() - self.memory, f"shared memory stays: {told}"
        there = sorted(item.name for item in self.temporary.iterdir())
        assert not there, f"{there} stays: {told}"

    def attack(self, kills, seed):
        """Kill so many times, and go on to the end whenever it was enough."""
        draw, count, number = random.Random(seed), 0, 0
        while count < kills:
            number += 1
            save = self.folder / f"ck{number}"
            for _ in range(draw.randint(1, 3)):
                count += 1
                if self.kill(draw, save):
                    break
            found = self.finish(save)
            wrong = {n: f for n, f in found.items() if self.expected[n] != f}
            assert not wrong, f"other losses after {dict(self.done)}: {wrong}"
            unfinished = [str(path) for path in save.rglob("*") if is_unfinished(path)]
            assert not unfinished, unfinished
            shutil.rmtree(save)
        return self.done


def is_unfinished(path):
    return path.name.startswith(".") or path.name.endswith((".partial", ".tmp", "run.lock"))


def main():
    """Usage: python run_killer.py FOLDER KILLS SEED LAUNCHER/KIND..."""
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

    def attack(name, place):
        launcher, _, kind = name.partition("/")
        return Run(launcher, KINDS[kind or "plain"], place).attack(kills, seed)

    attack_each(folder, sys.argv[4:], attack)


if __name__ == "__main__":
    main()
