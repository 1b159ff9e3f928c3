# SPDX-License-Identifier: Apache-2.0
"""A ``Trainer`` that is ended at random moments and goes on until it is through.

Usage: python trainer_killer.py FOLDER KILLS SEED.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from jobs import Job

SIGNALS = ("KILL", "KILL", "TERM", "INT", "HUP")
SCRIPT = """
import json, sys
from pathlib import Path
import mindspore, numpy as np
from mindspeed_ms import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

out = Path(sys.argv[1])
sizes = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
mindspore.set_seed(1)
np.random.seed(1)
model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes))
draw = np.random.default_rng(0)
rows = [draw.integers(0, 64, 32).tolist() for _ in range(64)]
data = [{"input_ids": row, "labels": row} for row in rows]
arguments = TrainingArguments(
    output_dir=str(out), max_steps=15, per_device_train_batch_size=4, save_steps=2,
    logging_steps=1, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
    save_total_limit=2, report_to="none", seed=1,
)
trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[:8])
trainer.train(resume_from_checkpoint=(out / "latest_checkpointed_iteration.txt").exists())
history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
best = trainer.state.best_metric
trainer.save_model(str(out / "final"))
print("HISTORY", json.dumps([history, best], sort_keys=True))
"""


def start(folder, out):
    script = folder / "train.py"
    script.write_text(SCRIPT)
    (folder / "tmp").mkdir(exist_ok=True)
    return Job([sys.executable, script, out], folder, TMPDIR=str(folder / "tmp"))


def finish(folder, out):
    """What a run to its end tells, and the weights it has saved."""
    job = start(folder, out)
    assert job.wait(300) == 0, job.text()[-3000:]
    (line,) = [x for x in job.text().splitlines() if x.startswith("HISTORY")]
    assert not job.end()
    job.console.unlink()
    names = {path.name for path in out.iterdir() if path.is_file()}
    left = {name for name in names if name.startswith(".") or name.endswith((".partial", ".lock"))}
    assert not left, left
    left = [path for path in (out / "final").iterdir() if path.name.startswith(".")]
    assert not left and not list((folder / "tmp").iterdir()), left
    return json.loads(line.removeprefix("HISTORY ")), (out / "final/model.safetensors").read_bytes()


def kill(folder, out, seconds, name):
    """End a run at a moment; whether it was through before."""
    job = start(folder, out)
    job.wait(seconds)
    job.send("launcher", signal.Signals[f"SIG{name}"])
    status = job.wait(40)
    left = job.end()
    told = f"{name} after {seconds:.2f} s: status {status}\n{job.text()[-3000:]}"
    assert status is not None and not left, told
    is_through = "HISTORY" in job.text()
    assert status != 0 or is_through, told
    assert "Traceback" not in job.text() or "import" in job.text(), told
    job.console.unlink()
    return is_through


def attack(folder, kills, seed):
    """Kill so many times; how many of each kind there were."""
    draw, seen, number = random.Random(seed), Counter(), 0
    started = time.monotonic()
    expected = finish(folder, folder / "undisturbed")
    seconds = 0.9 * (time.monotonic() - started)
    while sum(seen.values()) < kills:
        number += 1
        out = folder / f"out{number}"
        for _ in range(draw.randint(1, 4)):
            name = draw.choice(SIGNALS)
            is_through = kill(folder, out, draw.uniform(0.1, 1.0) * seconds, name)
            seen["finished before" if is_through else name] += 1
        found = finish(folder, out)
        assert found[0] == expected[0], (seen, found[0], expected[0])
        assert found[1] == expected[1], f"other weights after {seen}"
        shutil.rmtree(out)
    return seen


def main():
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sys.stdout.write(f"{dict(attack(folder, kills, seed))}\n")


if __name__ == "__main__":
    main()
