# SPDX-License-Identifier: Apache-2.0
"""Calls of the high-level room's public names with values of any kind, and what is wrong with them.

    python tests/api_attacks.py [FIRST_SEED COUNT [PART OF A NAME ...]]

prints a line for every place in the code whose answer was not this project's own.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import random
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import mindspore  # noqa: E402
from generation_models import write_folder, write_tokenizer  # noqa: E402

import mindspeed_ms  # noqa: E402
from mindspeed_ms.backend import comm  # noqa: E402

PACKAGE = str(Path(mindspeed_ms.__file__).parent)
OURS = (TypeError, ValueError, OSError, RuntimeError, NotImplementedError, KeyError)
SECONDS = 60


class Odd:
    """Nothing that anybody knows."""


VALUES = [
    *(None, True, 0, -1, 3, 1 << 70, 1.5, float("nan"), float("inf"), "", "x", "x\0", "\ud800"),
    *(
        "/proc/nowhere",
        b"x",
        [],
        [1],
        ["w1"],
        [None],
        [[1, 2], [3]],
        [-1],
        {},
        {"a": 1},
        {1: 2},
        (),
    ),
    *((1, 2), set(), Odd(), Odd, np.zeros(3), np.zeros((2, 2), np.int32), np.array(5), 1j),
    *(np.float32(2), mindspore.Tensor([1, 2]), mindspore.Tensor(1.5), len, range(3), object),
    *(Path("/proc/nowhere"), iter([1])),
]
INNER = {
    "model.adopt": "for those who write model classes",
    "model.network": "the engine's model",
    "model.set_input_tensor": "for pipelines",
    "args.interval": "for the trainer",
    "args.strategy": "for the trainer",
}
"""Public names that are not for users."""


class Room:
    """Everything that can be called, and arguments that are fine."""

    def __init__(self, root: Path) -> None:
        comm.init_process_group()
        folder = write_tokenizer(write_folder("llama", root / "llama"))
        model = mindspeed_ms.AutoModelForCausalLM.from_pretrained(str(folder))
        tokenizer = mindspeed_ms.AutoTokenizer.from_pretrained(str(folder))
        arguments = mindspeed_ms.TrainingArguments(output_dir=str(root / "out"))
        pipe = mindspeed_ms.pipeline("text_generation", model=model, tokenizer=tokenizer)
        lora = mindspeed_ms.LoraConfig(r=2, target_modules=["q_proj"])
        self.calls = _public() | _methods(
            model=model,
            tok=tokenizer,
            pipe=pipe,
            args=arguments,
            options=mindspeed_ms.GenerationConfig(),
            lora=lora,
            cfg=mindspeed_ms.LlamaConfig(),
            state=mindspeed_ms.TrainerState(),
            streamer=mindspeed_ms.TextStreamer(tokenizer),
        )
        rows = [{"input_ids": [1, 2, 3]}]
        self.fine = {
            "Trainer": {"args": arguments, "model": model, "train_dataset": rows},
            "TrainingArguments": {"output_dir": str(root / "out")},
            "pipeline": {"task": "text_generation", "model": model, "tokenizer": tokenizer},
            "model.generate": {"input_ids": [[1]], "max_new_tokens": 1},
            "get_pet_model": {"model": model, "config": lora},
            "PeftModel.from_pretrained": {"model": model, "folder": str(folder)},
            "save_adapter": {"model": model, "folder": str(root / "adapters")},
            "pipe.__call__": {"text": "w1", "max_new_tokens": 1},
            "tok.__call__": {"text": "w1"},
        }
        generation = list(mindspeed_ms.GenerationConfig().to_dict())
        self.names = {
            "model.generate": generation,
            "GenerationConfig": generation,
            "pipe.__call__": [*generation, "batch_size", "return_full_text", "seed", "streamer"],
            "pipeline": ["batch_size", "device", "max_new_tokens"],
            "ContextConfig": ["mode", "device_target", "device_id", "max_device_memory"],
            "ParallelContextConfig": ["parallel_mode", "full_batch"],
            "LoraConfig": [*lora.to_dict(), "peft_type", "task_type", "lora_rank", "bias"],
            "TrainingArguments": [n for n in vars(arguments) if n not in ("others", "output_dir")],
            **{
                f"{name}Config": list(getattr(mindspeed_ms, f"{name}Config")().to_dict())
                for name in ("Llama", "GPT2", "PanguAlpha", "Mixtral", "Qwen2")
            },
        }

    def call(self, seed: int, wanted: tuple[str, ...] = ()) -> tuple[str, list, dict]:
        """A name, and arguments of which one or two are nonsense."""
        rng = random.Random(seed)
        name = rng.choice([n for n in self.calls if not wanted or any(w in n for w in wanted)])
        known = [*_parameters(self.calls[name]), *self.names.get(name, ())]
        positional, words = [], dict(self.fine.get(name, {}))
        if known and (words or name in self.names):
            for _ in range(rng.choice([1, 1, 2])):
                words[rng.choice(known)] = rng.choice(VALUES)
        else:
            positional = [rng.choice(VALUES) for _ in known[: rng.randrange(4)]]
        return name, positional, words


def _public() -> dict[str, object]:
    found = {}
    for name in mindspeed_ms.toolkit.EXPORTS:
        one = getattr(mindspeed_ms, name)
        if callable(one):  # a script's log is none
            found[name] = one
        if inspect.isclass(one):
            for inner, method in inspect.getmembers(one, inspect.ismethod):
                if not inner.startswith("_"):
                    found[f"{name}.{inner}"] = method
    return found


def _methods(**objects: object) -> dict[str, object]:
    found = {}
    for name, one in objects.items():
        for inner in (*(word for word in dir(type(one)) if word[0] != "_"), "__call__"):
            static = inspect.getattr_static(type(one), inner, None)
            home = getattr(getattr(static, "__func__", static), "__module__", None) or ""
            is_own = static is not None and not home.startswith("mindspore")
            if is_own and f"{name}.{inner}" not in INNER and callable(getattr(one, inner, None)):
                found[f"{name}.{inner}"] = getattr(one, inner)
    return found


def _parameters(call: object) -> list[str]:
    try:
        parameters = inspect.signature(call).parameters.items()
    except (TypeError, ValueError):
        return []
    loose = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, one in parameters if name != "self" and one.kind not in loose]


def is_own(error: BaseException) -> bool:
    """Whether an error says in one line of this project what was wrong."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    if isinstance(error, TypeError) and len(frames) <= 2 and " argument" in str(error):
        return True  # of the call itself: too many, too few, an unknown name
    if not isinstance(error, OURS):
        return isinstance(error, AttributeError) and (last.line or "").startswith("raise ")
    is_ours = last.filename.startswith(PACKAGE) and (last.line or "").startswith("raise")
    return "\n" not in str(error) and (is_ours or isinstance(error, OSError))


def faults(room: Room, first: int, count: int, wanted: tuple[str, ...] = ()) -> dict[str, str]:
    """Place in the code -> the call, and what came out of it that is not an own answer."""
    found: dict[str, str] = {}

    def ring(*unused: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, ring)
    logging.disable(logging.CRITICAL)
    try:
        for seed in range(first, first + count):
            name, positional, words = room.call(seed, wanted)
            signal.alarm(SECONDS)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    room.calls[name](*positional, **words)
            except BaseException as error:  # noqa: BLE001  (anything is a finding)
                signal.alarm(0)
                if isinstance(error, TimeoutError) or not is_own(error):
                    frames = traceback.extract_tb(error.__traceback__)
                    own = [one for one in frames if one.filename.startswith(PACKAGE)]
                    place = f"{(own or frames)[-1].filename}:{(own or frames)[-1].lineno}"
                    text = f"{name}(*{positional!r:.100}, **{words!r:.300})"
                    found.setdefault(
                        place, f"seed {seed}: {text}: {type(error).__name__}: {error!s:.200}"
                    )
            signal.alarm(0)
    finally:
        logging.disable(logging.NOTSET)
        signal.signal(signal.SIGALRM, before)
    return found


def main() -> None:
    """Try some seeds."""
    first, count = (int(word) for word in (sys.argv[1:3] or ["0", "1000"]))
    root = Path(tempfile.mkdtemp())
    os.chdir(root)
    for place, text in faults(Room(root), first, count, tuple(sys.argv[3:])).items():
        sys.stdout.write(f"{place}\n   {text}\n")
    sys.stdout.write(f"{count} tried\n")


if __name__ == "__main__":
    main()
