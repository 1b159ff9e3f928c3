# SPDX-License-Identifier: Apache-2.0
"""Commands that are ended at random moments, and what that leaves.

``Case`` names a command and what it makes. ``attack`` runs it undisturbed, then once for each kill,
and each time again without one: everything must end in time with an honest status and one line,
what is there must be whole, and what the second run makes must be what was made undisturbed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jobs import REPOSITORY, Job, attack_each

DATA = REPOSITORY / "data" / "tiny"
COMMAND = [sys.executable, "-m", "mindspeed_ms.command"]
SECONDS = 15.0
"""For the end, on a busy machine; alone it takes less than one, three within a library."""
WAYS = (
    *("main KILL", "main TERM", "main INT", "main HUP", "group INT", "group TERM"),
    *("main TERM twice", "main INT twice", "worker KILL", "worker TERM", "stopped CONT"),
)


@dataclass(frozen=True)
class Case:
    """A command, and the folder in its working folder that it writes to."""

    words: tuple[str, ...]
    is_whole_by_files: bool = True
    """Whether each single file it makes is useful alone; else ``complete`` names the last one."""
    complete: str = ""
    has_workers: bool = False


def corpus(folder, documents=4000):
    draw = random.Random(1)
    letters = "abcdefghiklmnop"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(2000)]
    lines = (
        json.dumps({"text": " ".join(draw.choices(words, k=60)), "title": draw.choice(words)})
        for _ in range(documents)
    )
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")


TOKENIZER = (
    *("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(DATA / "tok.model")),
)
TOKENIZE = ("preprocess", "--input", "corpus.jsonl", "--output-prefix", "out/x", *TOKENIZER)
CASES = {
    "preprocess": Case((*TOKENIZE, "--workers", "2"), False, "x_text_document.idx", True),
    "two-keys": Case(
        (*TOKENIZE, "--json-keys", "text", "title", "--partitions", "3"), False, ".idx"
    ),
    "pieces": Case(
        ("tokenizer", "train", "--input", "corpus.jsonl", "--vocab-size", "1000")
        + ("--output", "out/t.model", "--force")
    ),
    "bpe": Case(
        ("tokenizer", "train", "--input", "corpus.jsonl", "--vocab-size", "1000", "--kind", "bpe")
        + ("--output", "out", "--force"),
    ),
}

CONVERT = ("convert", "ck", "out")
for name, words in {
    "to-megatron": ("--to", "megatron", "--tensor-model-parallel-size", "2"),
    "to-hugging-face": ("--to", "huggingface", "--max-shard-size", "300KB"),
    "to-mindspore": ("--to", "mindspore"),
}.items():
    # ``conversion_killer`` looks at what is there after a kill; here the others are looked at.
    CASES[name] = Case((*CONVERT, *words), False, "of every file at once")
CASES["report"] = Case(("report", "ck", "--output", "out/report.html"))
CASES["plot"] = Case(("plot", "ck", "--output", "out/curve.svg"))


def checkpoint(folder):
    """A short run, for the commands that need one."""
    words = [
        *("train", "--yaml", REPOSITORY / "configs" / "tiny_gpt.yaml", "--train-iters", "2"),
        *("--tensor-model-parallel-size", "1", "--global-batch-size", "4", "--save", "ck"),
        *("--data-path", DATA / "tiny_text_document", "--tokenizer-model", DATA / "tok.model"),
        *("--data-cache-path", "cache", "--eval-iters", "0", "--lr-warmup-iters", "1"),
    ]
    job = Job([*COMMAND, *words], folder)
    assert job.wait(300) == 0, job.text()[-2000:]
    job.console.unlink()


def digests(folder):
    """Name below the folder -> digest of the content, of every file with a name of its own."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not unfinished(path.relative_to(folder))
    }


def unfinished(path):
    is_hidden = any(part.startswith(".") for part in path.parts)
    return is_hidden or path.name.endswith((".partial", ".tmp"))


def leftovers(folder):
    return sorted(str(path) for path in folder.rglob("*") if unfinished(path.relative_to(folder)))


class Attack:
    """One command, killed again and again in a folder."""

    def __init__(self, case, folder):
        self.case, self.folder, self.out = case, folder, folder / "out"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        started = time.monotonic()
        self.run()
        self.seconds = time.monotonic() - started
        self.expected = digests(self.out)
        assert self.expected, "nothing was made"
        self.seen = Counter()

    def start(self):
        words = [*COMMAND, *self.case.words]
        return Job(words, self.folder, TMPDIR=str(self.temporary), COLUMNS="80")

    def run(self):
        job = self.start()
        assert job.wait(300) == 0, job.text()[-2000:]
        assert not job.end()
        job.console.unlink()

    def kill(self, way, moment):
        """Start over what is there, or anew; end it so; then finish the work."""
        victim, name, *twice = way.split()
        job = self.start()
        job.wait(moment)
        if victim == "stopped":
            job.send("launcher", signal.SIGSTOP)
            time.sleep(0.3)
        pids = self.victims(job, victim)
        while not pids and job.process.poll() is None:
            pids = self.victims(job, victim)
        for _ in range(2 if twice else 1):
            for pid in pids:
                try:
                    (os.killpg if victim == "group" else os.kill)(pid, signal.Signals[f"SIG{name}"])
                except ProcessLookupError:
                    pass
            time.sleep(0.05 if twice else 0)
        status = job.wait(SECONDS if victim != "stopped" else 300)
        seconds = job.seconds_until_gone(5)
        left = job.end()
        told = f"{way} after {moment:.2f} s: status {status}\n{job.text()[-2000:]}"
        assert status is not None, f"did not end: {told}"
        assert not left, f"{left} stayed {seconds:.1f} s: {told}"
        assert "Traceback" not in job.text(), told
        is_done = digests(self.out) == self.expected if self.out.exists() else False
        assert status >= 0 or way == "main KILL" or is_done or self.is_starting(job), told
        assert status != 0 or is_done, told
        self.check(status, way, told)
        self.seen["finished before" if status == 0 else way] += 1
        job.console.unlink()

    def is_starting(self, job):
        """Whether a signal came before the command could listen, and it had said nothing."""
        return not job.text().strip()

    def victims(self, job, victim):
        if victim == "worker":
            workers = [pid for pid in job.processes() if pid != job.process.pid]
            return random.sample(workers, 1) if workers else []
        return [job.process.pid]

    def check(self, status, way, told):
        found = digests(self.out) if self.out.exists() else {}
        if self.case.is_whole_by_files or any(name.endswith(self.case.complete) for name in found):
            names = found
            if not self.case.is_whole_by_files:  # only what belongs to a complete one
                stems = {n[: -len(".idx")] for n in found if n.endswith(".idx")}
                names = [n for n in found if n.rpartition(".")[0] in stems]
            wrong = [name for name in names if found[name] != self.expected.get(name)]
            assert not wrong, f"{wrong} look complete: {told}"
        if way.split()[1] != "KILL" and status not in (0, -15, -2, -1):
            assert not leftovers(self.out) if self.out.exists() else True, told
            assert not list(self.temporary.iterdir()), told

    def finish(self):
        """Once more without a kill: as if none had been."""
        self.run()
        assert digests(self.out) == self.expected
        assert not leftovers(self.out), leftovers(self.out)
        assert not list(self.temporary.iterdir()), list(self.temporary.iterdir())


def attack(name, folder, kills, seed):
    """Kill a command at so many moments; how many of each way there were."""
    case = CASES[name]
    corpus(folder)
    if "ck" in case.words:
        checkpoint(folder)
    draw = random.Random(seed)
    attacked = Attack(case, folder)
    ways = [way for way in WAYS if case.has_workers or not way.startswith("worker")]
    for number in range(kills):
        if draw.random() < 0.5:
            shutil.rmtree(attacked.out)
        way = ways[number % len(ways)] if kills >= len(ways) else draw.choice(ways)
        attacked.kill(way, max(0.2, draw.uniform(0.1, 0.95) * attacked.seconds))
        attacked.finish()
    return attacked.seen


def main():
    """Usage: python command_killer.py FOLDER KILLS SEED [NAME...]."""
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    names = sys.argv[4:] or CASES
    attack_each(folder, names, lambda name, place: attack(name, place, kills, seed))


if __name__ == "__main__":
    main()
