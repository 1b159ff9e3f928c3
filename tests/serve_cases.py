# SPDX-License-Identifier: Apache-2.0
"""Requests to a batch, and what comes out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from generation_models import write_folder, write_tokenizer

from mindspeed_ms.backend import memory
from mindspeed_ms.core.inference import sampling
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.serve.batch import Piece, Request
from mindspeed_ms.toolkit.serve.openai_forms import Served

ROOT = Path(__file__).parents[1]
MODULE = ("-m", "mindspeed_ms.toolkit.serve")
MEGATRONS = (str(ROOT / "tools/run_text_generation_server.py"),)
OPTIONS = (
    {"max_new_tokens": 9},
    {"max_new_tokens": 12, "do_sample": True, "top_k": 0, "num_return_sequences": 3},
    {"max_new_tokens": 3, "repetition_penalty": 1.3},
    {"max_new_tokens": 15, "do_sample": True, "temperature": 0.7, "top_p": 0.9},
    {"max_new_tokens": 6, "do_sample": True, "top_k": 5, "no_repeat_ngram_size": 2},
)
PROMPTS = ((5, 6, 9), (3, 1, 4, 1, 5, 9, 2, 6), (11,), (40, 41, 42, 43), (9, 6), (5, 6, 9))


class Words:
    """A tokenizer of words ``w0``, ``w1``, ..."""

    eos_token_id = 7
    bos_token_id = None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(f"w{token}" for token in ids)


SERVED = Served(
    name="tiny",
    tokenizer=Words(),
    vocab_size=96,
    max_length=64,
    end_tokens=(7,),
    begin_token=None,
    max_open=200,
)


def requests(num_prompts=None):
    """Every prompt with every set of options."""
    made = []
    for options in OPTIONS:
        for prompt in PROMPTS[:num_prompts]:
            copies = options.get("num_return_sequences", 1)
            config = GenerationConfig(**options, eos_token_id=7).filled()
            config.max_length = len(prompt) + options["max_new_tokens"]
            names = sampling.stream_names([prompt], copies)
            made.append(
                Request(
                    number=len(made),
                    prompt=prompt,
                    config=config,
                    seed=3,
                    names=tuple(int(name) for name in names),
                )
            )
    return made


def alone(model, request):
    """New ids of each sequence of a request, as ``generate`` gives them."""
    prompt = list(request.prompt)
    config = request.config.to_dict() | {"max_length": request.config.max_length}
    config.pop("max_new_tokens")
    output = model.generate([prompt], generation_config=config, seed=request.seed)
    rows = memory.as_numpy(output)[:, len(prompt) :].tolist()
    return [row[: row.index(7) + 1] if 7 in row else row for row in rows]


class Collected:
    """Tokens of the events, by request and sequence."""

    def __init__(self):
        self.tokens, self.ended, self.others = {}, {}, []

    def take(self, event):
        if not isinstance(event, Piece):
            self.others.append(event)
            return
        if event.token is not None:
            rows = self.tokens.setdefault(event.number, {})
            rows.setdefault(event.copy, []).append(event.token)
        if event.finish is not None:
            self.ended[event.number, event.copy] = event.finish

    def drain(self, batch):
        """Take all events until nothing is left to do; itself."""
        while batch.has_work:
            for event in batch.step():
                self.take(event)
        return self

    def rows(self, number):
        return [row for _, row in sorted(self.tokens[number].items())]


def served_folder(folder, model_type="llama"):
    """A folder with a model, a tokenizer and a chat template."""
    write_tokenizer(write_folder(model_type, Path(folder)))
    template = (
        "{% for message in messages %}{{ message.content }} {% endfor %}"
        "{% if add_generation_prompt %}w5{% endif %}"
    )
    (Path(folder) / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Path(folder)


@contextmanager
def server(folder, *flags, launcher=(sys.executable,), program=MODULE, status=0):
    """The address of a server that runs, and its process."""
    words = [*program, "--load", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOG_v": "3"}
    process = subprocess.Popen(
        [*launcher, *words, "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )
    errors = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    reader.start()
    process.errors = errors
    try:
        line = process.stdout.readline()
        assert "serving" in line, f"{line}{''.join(errors)}"
        process.address = line.split()[-1]
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == status, "".join(errors)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(5)
