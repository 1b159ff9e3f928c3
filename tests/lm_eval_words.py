# SPDX-License-Identifier: Apache-2.0
"""A local task for lm-eval, the figures that transformers gets, and those of a server.

Record with lm-eval and transformers, on a folder of ``serve_cases.served_folder``:
    python tests/lm_eval_words.py FOLDER tests/data/lm_eval.json
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

CHOICE = """\
task: words_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {samples}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
FREE = """\
task: words_free
dataset_path: json
dataset_kwargs: {{data_files: {{test: {samples}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{free}}}}"
generation_kwargs: {{until: ["w86"], max_gen_toks: 6, do_sample: false, temperature: 0.0}}
metric_list: [{{metric: exact_match}}]
"""


def write_tasks(folder: Path) -> None:
    """The two tasks, with forty samples."""
    chance, lines = random.Random(3), []
    words = [f"w{number}" for number in range(8, 90)]
    for number in range(40):
        text = " ".join(chance.choices(words, k=chance.randint(2, 9)))
        choices = [" ".join(chance.choices(words, k=chance.randint(1, 4))) for _ in range(4)]
        sample = {"text": text, "choices": choices, "answer": number % 4, "free": "w54 w54"}
        lines.append(json.dumps(sample))
    samples = folder / "samples.jsonl"
    samples.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, content in (("choice", CHOICE), ("free", FREE)):
        (folder / f"{name}.yaml").write_text(content.format(samples=samples), encoding="utf-8")


def write_end_token(folder: Path) -> None:
    """Give a folder an end token, which lm-eval wants: one whose text no other word begins with."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"eos_token": "w86"}), encoding="utf-8")


def figures(program: list[str], model: str, arguments: str, work: Path) -> dict:
    """What lm-eval finds: figures of both tasks, and what it got for every sample."""
    tasks, output = work / "tasks", work / "output"
    tasks.mkdir(parents=True)
    write_tasks(tasks)
    words = [*program, "--model", model, "--model_args", arguments, "--include_path", str(tasks)]
    words += ["--tasks", "words_choice,words_free", "--log_samples", "--output_path", str(output)]
    words += ["--batch_size", "1", "--device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = output.rglob("results_*.json")
    found = json.loads(result.read_text(encoding="utf-8"))["results"]
    kept = {
        task: {name: value for name, value in values.items() if name.endswith(",none")}
        for task, values in found.items()
    }
    samples = {}
    for task in ("words_choice", "words_free"):
        (path,) = output.rglob(f"samples_{task}_*.jsonl")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        samples[task] = [row["filtered_resps"] for row in rows]
    return {"results": kept, "samples": samples}


def main() -> None:
    """Record."""
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    write_end_token(folder)
    arguments = f"pretrained={folder},dtype=float32"
    found = figures([sys.executable, "-m", "lm_eval"], "hf", arguments, folder / "work")
    output.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
