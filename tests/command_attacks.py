# SPDX-License-Identifier: Apache-2.0
"""Command lines of the small commands with nonsense in one or two places; each in a forked process.

    python tests/command_attacks.py FOLDER [FIRST_SEED COUNT [TOOL ...]]

prints every seed whose answer was no answer.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import json
import logging
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # it is a script, too

import conversion_killer as conversions  # noqa: E402
from generation_models import write_folder, write_tokenizer  # noqa: E402

from mindspeed_ms.data.indexed_dataset import (  # noqa: E402
    DType,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)

SECONDS = 60
"""After which a command hangs; the machine may be busy."""

COMMANDS = {
    "doctor": ("mindspeed_ms.command.doctor", ["--help"]),
    "compare-layouts": (
        "mindspeed_ms.command.compare_layouts",
        ["--layouts", "pp=1", "--steps", "1", "--tolerance", "1e-3", "--yaml", "{yaml}"],
    ),
    "serve": (
        "mindspeed_ms.toolkit.serve.command",
        ["--model", "{model}", "--port", "0", "--max-queue", "3", "--api-key-file", "{lines}"],
    ),
    "generate": (
        "mindspeed_ms.command.generate",
        ["--load", "{model}", "--prompt-file", "{lines}", "--max-new-tokens", "2"],
    ),
    "evaluate": (
        "mindspeed_ms.command.evaluate",
        ["--load", "{own}", "--eval-iters", "1", "--mock-data", "--micro-batch-size", "1"],
    ),
    "convert": ("mindspeed_ms.command.convert", ["{model}", "{out}/c", "--no-verify"]),
    "convert to": (
        "mindspeed_ms.command.convert",
        ["{own}", "{out}/c", "--to", "huggingface", "--no-verify", "--max-shard-size", "1MB"],
    ),
    "inspect": ("mindspeed_ms.command.convert", ["inspect", "{own}", "--ckpt-step", "7"]),
    "diff": ("mindspeed_ms.command.convert", ["diff", "{own}", "{model}"]),
    "preprocess": (
        "mindspeed_ms.command.preprocess",
        ["--input", "{jsonl}", "--output-prefix", "{out}/p", "--tokenizer-type"]
        + ["HuggingFaceTokenizer", "--tokenizer-model", "{model}", "--partitions", "2"],
    ),
    "tokenizer": (
        "mindspeed_ms.command.tokenizer",
        ["train", "--input", "{jsonl}", "--output", "{out}/t", "--kind", "bpe"]
        + ["--vocab-size", "300", "--json-keys", "text"],
    ),
    "plan": (
        "mindspeed_ms.command.train:plan",
        ["--yaml", "{yaml}", "--micro-batch-size", "1", "--world-size", "4"],
    ),
    "report": ("mindspeed_ms.command.report", ["{run}", "--output", "{out}/r.html"]),
    "parity": (
        "mindspeed_ms.command.parity",
        ["--log", "{log}", "--iterations", "3", "--tolerance", "1e-3", "--weights", "{npz}"],
    ),
    "golden": ("mindspeed_ms.command.parity", ["--golden", "{model}", "--case", "c"]),
    "configs": ("mindspeed_ms.command.configs", ["copy", "tiny_gpt.yaml", "{out}/y.yaml"]),
    "plot": ("mindspeed_ms.command.plot", ["{log}", "--output", "{out}/p.svg", "--y", "lm loss"]),
    "completion": ("mindspeed_ms.command.completion", ["bash"]),
    "inspect_dataset": ("tools.inspect_dataset", ["{data}", "--samples", "2", "--max-tokens", "4"]),
    "merge_datasets": (
        "tools.merge_datasets",
        ["--input", "{data_dir}", "--output-prefix", "{out}/m"],
    ),
    "merge_profile": ("tools.merge_profile", ["{run}"]),
    "make_austen_corpus": ("tools.make_austen_corpus", ["{jsonl}", "{out}/a"]),
    "pipeline_balance": ("tools.pipeline_balance", ["--init", "{yaml}", "-m", "x", "-mb", "4"]),
    "pipeline_timeline": (
        "tools.pipeline_timeline",
        ["--stages", "2", "--microbatches", "4", "--output", "{out}/t.svg"],
    ),
    "convert_pt2ckpt": (
        "tools.convert_ckpt.convert_pt2ckpt",
        ["--megatron-path", "{megatron}", "--ms-path", "{out}/ms", "--tp-size", "1"],
    ),
    "convert_ckpt2pt": (
        "tools.convert_ckpt.convert_ckpt2pt",
        ["--ms-path", "{mindspore}", "--megatron-path", "{out}/pt", "--num-layers", "2"],
    ),
    "combine": (
        "tools.convert_ckpt.combine_ckpt_dp_zero",
        ["--strategy-dir", "{run}", "--checkpoint-dir", "{mindspore}", "--output-dir", "{out}/o"],
    ),
    "convert_weight": (
        "mindspeed_ms.toolkit.convert_weight",
        ["--layers", "2", "--torch_path", "{bin}", "--mindspore_path", "{out}/g.ckpt"],
    ),
    "hccl_tools": (
        "mindspeed_ms.toolkit.launch.hccl_tools",
        ["--device_num", "[0,2)", "--server_ip", "127.0.0.1"],
    ),
    "merge_hccl": ("mindspeed_ms.toolkit.launch.merge_hccl", ["{table}", "{table2}"]),
    "create_lm_data": (
        "mindspeed_ms.toolkit.data.create_lm_data",
        ["--input_file", "{jsonl}", "--output_file", "{out}/d.mindrecord"]
        + ["--tokenizer", "{model}"],
    ),
    "run_mindformer": (
        "mindspeed_ms.toolkit.run_mindformer",
        ["--config", "{task}", "--run_mode", "train", "--train_dataset_dir", "{jsonl}"],
    ),
    "torchrun": (
        "mindspeed_ms.backend.torchrun.run",
        ["--nproc-per-node", "2", "--nnodes", "1", "--master-port", "29511", "{pretrain}"]
        + ["--yaml", "{yaml}", "--micro-batch-size", "1"],
    ),
    "msrun": (
        "mindspeed_ms.backend.torchrun.msrun",
        ["--worker_num", "2", "--local_worker_num", "2", "--master_port", "29512"]
        + ["--log_dir", "{out}/l", "--join", "True", "{pretrain}", "--yaml", "{yaml}"],
    ),
    "deepspeed": (
        "mindspeed_ms.backend.torchrun.deepspeed",
        ["--num_gpus", "2", "--hostfile", "{hosts}", "--include", "a:0,1", "{pretrain}"]
        + ["--yaml", "{yaml}"],
    ),
    "train": (
        "mindspeed_ms.command.train",
        ["--yaml", "{yaml}", "--micro-batch-size", "1", "--mock-data", "--save", "{out}/s"]
        + ["--save-interval", "1", "--train-iters", "1", "--lr", "1e-3"],
    ),
    "text server": (
        "mindspeed_ms.toolkit.serve.megatron_command",
        ["--load", "{model}", "--port", "0", "--max-batch-size", "2"],
    ),
}
"""Name -> module, with its function if it is not main; a command line that is fine, or nearly."""

LAUNCHERS = ("torchrun", "msrun", "deepspeed")
PLANNED = (*LAUNCHERS, "train")
"""Told to plan only: they would start as many ranks as a number says."""

_SLOW = (*PLANNED, "text server", "doctor", "serve", "evaluate", "compare-layouts", "generate")
_SLOW += ("parity", "golden", "plan", "run_mindformer", "create_lm_data")
_WORKERS = ("evaluate", "generate", "compare-layouts")
QUICK = [name for name in COMMANDS if name not in _SLOW]
"""Those that answer at once."""

TEXTS = [
    *("", " ", "x", "0", "-1", "1", "1.5", "nan", "inf", "-inf", "1e400", "9" * 20, "9" * 5000),
    *("1_000", "٣", "None", "True", "[]", "[1", "{}", '{"a":1}', "\udcff\udc80", "a\nb", "--"),
    *("\x1b[31m", "é" * 300, "%s", "{0}", "a=b", "../../x", "~", "-", ",", "(" * 400, "tp=0"),
    *("tp=٣", "pp=99999999999", "a/b/c", "65536", "2**70", "\\", "*", "**", "[!", "$HOME"),
]


class Bench:
    """What commands are given, sound and not, in one folder.

    Args:
        root: a new folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sound = root / "sound"
        self.sound.mkdir(parents=True)
        self.places = _sound(self.sound)
        self.strange = _strange(root / "strange")
        self.digests = digests(self.sound)

    def words(self, seed: int, names: list[str]) -> tuple[str, list[str], Path]:
        """A command, its words, and the folder it may write to."""
        rng = random.Random(seed)
        name = rng.choice(names)
        out = Path(tempfile.mkdtemp(dir=self.root, prefix="out."))
        words = [
            out.as_posix() if word == "OUT" else word.format(**self.places, out=out)
            for word in COMMANDS[name][1]
        ]
        for _ in range(rng.choice([1, 1, 1, 2])):
            flags = flags_of(name)
            if name in LAUNCHERS and rng.random() < 0.4:  # else they are the script's
                words[:0] = [rng.choice(flags), self._value(rng, words, out)]
            else:
                self._spoil(words, flags, rng, out)
        if name in _WORKERS:  # what takes minutes to do is no fault
            words = ["65" if word == "65536" else word for word in words]
        return name, words, out

    def _spoil(self, words: list[str], flags: list[str], rng: random.Random, out: Path) -> None:
        values = [place for place, word in enumerate(words) if not word.startswith("-")]
        way = rng.random()
        value = self._value(rng, words, out)
        if way < 0.6 and values:
            words[rng.choice(values)] = value
        elif way < 0.9 and flags:
            words += [rng.choice(flags), value]
        elif way < 0.95 and flags:
            words += [rng.choice(flags)]
        elif words:
            del words[rng.randrange(len(words))]

    def _value(self, rng: random.Random, words: list[str], out: Path) -> str:
        way = rng.random()
        if way < 0.35:
            return rng.choice(TEXTS)
        if way < 0.75:
            return str(rng.choice(self.strange))
        if way < 0.85:
            return str(rng.choice(list(self.places.values())))
        if way < 0.9:  # input and output are the same
            return rng.choice([word for word in words if "/" in word] or ["/"])
        return rng.choice(["/dev/full", "/dev/null", "/proc/self/mem", "/", ".", "/sys", "/dev"])


def _sound(folder: Path) -> dict[str, str]:
    model = write_tokenizer(write_folder("llama", folder / "model"))
    catalog = conversions.tiny_model(folder / "values", 1.0)
    made = {"model": model}
    for kind in ("own-safetensors", "megatron", "mindspore-ckpt"):
        target = folder / kind
        conversions.converted(catalog, target, conversions.TARGETS[kind])
        made[kind.split("-")[0]] = target
    texts = {
        "hosts": ("hostfile", "a slots=2\nb slots=2\n"),
        "jsonl": ("c.jsonl", '{"text": "w1 w2 w3"}\n{"text": "w4 w5"}\n'),
        "lines": ("prompts.txt", "w1 w2\nw3\n"),
        "yaml": ("model.yaml", json.dumps({"model_config": conversions.MODEL})),
        "task": ("task.yaml", "model:\n  model_config:\n    type: LlamaConfig\n"),
        "log": ("run.log", _log()),
        "npz": ("w.npz", "PK"),
        "bin": ("pytorch_model.bin", "PK"),
        "table": ("t.json", _table("10.0.0.1")),
        "table2": ("t2.json", _table("10.0.0.2")),
    }
    for name, (file, text) in texts.items():
        made[name] = folder / file
        made[name].write_text(text, encoding="utf-8")
    made["pretrain"] = ROOT / "pretrain_gpt.py"
    made["run"] = folder / "run"
    made["run"].mkdir()
    (made["run"] / "run_record.jsonl").write_text(_record())
    (made["run"] / "rank_0.json").write_text('{"traceEvents": []}')
    made["data_dir"], made["data"] = _dataset(folder / "data")
    return {name: str(path) for name, path in made.items()}


def _dataset(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    prefix = folder / "d"
    with IndexedDatasetBuilder(get_bin_path(str(prefix)), DType.optimal_dtype(100)) as builder:
        builder.add_document([1, 2, 3], [3])
        builder.finalize(get_idx_path(str(prefix)))
    return folder, prefix


def _log() -> str:
    line = (
        " [2026-01-01 00:00:00] iteration {0:8d}/       4 | consumed samples: {0} | elapsed time "
        "per iteration (ms): 10.0 | learning rate: 1.0E-03 | global batch size: 1 | "
        "lm loss: 5.{0}E+00 | loss scale: 1.0 | grad norm: 1.0 | number of skipped iterations: 0 |"
    )
    return "\n".join(line.format(step) for step in range(1, 5)) + "\n"


def _record() -> str:
    start = {"kind": "start", "iteration": 0, "settings": {}, "parameters": 5, "world_size": 1}
    steps = [
        {"kind": "step", "iteration": n, "losses": {"lm loss": 2.0}, "seconds": 0.1} for n in (1, 2)
    ]
    return "".join(json.dumps(entry) + "\n" for entry in (start, *steps))


def _table(address: str) -> str:
    device = {"device_id": "0", "device_ip": "192.168.0.1", "rank_id": "0"}
    server = {"server_id": address, "device": [device], "host_nic_ip": "reserve"}
    return json.dumps(
        {"version": "1.0", "server_count": "1", "server_list": [server], "status": "completed"}
    )


def _strange(folder: Path) -> list[Path]:
    """Paths that are not what a command hopes for."""
    folder.mkdir()
    contents = {
        "empty": b"",
        "zeros": bytes(5000),
        "not utf-8": b"\xff\xfe\x00\xd8 abc\n" * 50,
        "deep.json": b"[" * 100_000,
        "list.json": b"[1, 2, 3]\n",
        "null.json": b"null",
        "number.yaml": b"5\n",
        "object.json": b'{"a": [{"b": null}], "text": 5}\n',
        "bom.jsonl": b'\xef\xbb\xbf{"text": "a"}\n',
        "bomb.yaml": _yaml_bomb(),
        "tag.yaml": b"a: !!python/object/apply:os.system ['true']\n",
        "zip.npz": b"PK\x03\x04" + bytes(100),
        "numpy.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O'}",
        "one line.txt": b"x" * 100_000,
        "lines.txt": b"\n" * 5000,
        "nan.jsonl": b'{"text": NaN}\n{"text": null}\n',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    (folder / "folder.jsonl").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "circle").symlink_to("circle")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "into itself").mkdir()
    (folder / "into itself" / "again").symlink_to("..")
    for name, mode in (("secret", 0), ("closed", 0)):
        (folder / name).write_bytes(b"{}")
        (folder / name).chmod(mode)
    (folder / "shut").mkdir(mode=0)
    (folder / "read only").mkdir(mode=0o500)
    (folder / os.fsdecode(b"\xff\xfe name")).write_bytes(b"{}")
    extra = [folder / "nowhere", folder / "empty" / "below", folder / "read only" / "new.html"]
    extra += [folder / "shut" / "inside", folder / "circle" / "below", folder / ("n" * 300)]
    return [*sorted(folder.iterdir()), *extra, Path("/dev/full"), Path("/dev/zero"), Path("/")]


def _yaml_bomb() -> bytes:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines).encode()


def flags_of(name: str) -> list[str]:
    """All flags of a command, by its parser."""
    if name not in _FLAGS:
        found: list[str] = []

        class Stop(BaseException):
            """Nothing is done after the flags are known."""

        def note(self: argparse.ArgumentParser, *unused: object, **words: object) -> None:
            for action in self._actions:
                found.extend(flag for flag in action.option_strings if flag not in ("-h", "--help"))
                if isinstance(action, argparse._SubParsersAction):
                    for inner in action.choices.values():
                        note_inner(inner)
            raise Stop

        def note_inner(parser: argparse.ArgumentParser) -> None:
            found.extend(f for action in parser._actions for f in action.option_strings)

        before = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
        argparse.ArgumentParser.parse_args = note
        argparse.ArgumentParser.parse_known_args = note
        try:
            with contextlib.suppress(Stop, SystemExit):
                sys.argv = [f"mindspeed-ms {name}"]
                main_of(name)()
        finally:
            argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args = before
        _FLAGS[name] = [flag for flag in dict.fromkeys(found) if flag not in ("-h", "--help")]
    return _FLAGS[name]


_FLAGS: dict[str, list[str]] = {}


def main_of(name: str) -> object:
    """Its function."""
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), function or "main")


def digests(folder: Path) -> dict[str, str]:
    """File -> digest of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass
class Answer:
    """How a command ended."""

    status: int
    """Negative: of a signal; 99: an exception came out."""
    out: str
    err: str
    seconds: float


def answered(name: str, words: list[str], folder: Path, limit: int | None = None) -> Answer:
    """Run a command in a process of its own, in a folder.

    Args:
        name: of the command.
        words: after it.
        folder: where it runs.
        limit: bytes that a file may get, as on a full disk.
    """
    ends = [os.pipe(), os.pipe()]
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be(name, words, folder, [end[1] for end in ends], limit)
    texts: dict[int, bytes] = {}
    for reading, writing in ends:
        os.close(writing)
        texts[reading] = b""
    opened, status = set(texts), -999
    while opened and time.monotonic() - began < SECONDS:
        for handle in select.select(opened, [], [], 1)[0]:
            data = os.read(handle, 1 << 16)
            texts[handle] += data
            if not data:
                opened.remove(handle)
    if opened:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = -999 if opened else ended
    for handle in texts:
        os.close(handle)
    out, err = (text.decode("utf-8", "replace") for text in texts.values())
    return Answer(status, out, err, time.monotonic() - began)


def _be(name: str, words: list[str], folder: Path, ends: list[int], limit: int | None) -> None:
    status = 99
    try:
        os.setsid()
        _give_up_root()
        os.chdir(folder)
        for number, handle in enumerate(ends, 1):
            os.dup2(handle, number)
            os.close(handle)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        logging.root.handlers.clear()
        if name in PLANNED:
            os.environ["MINDSPEED_MS_DRY_RUN"] = "1"
        if name in (
            "serve",
            "text server",
        ):  # one that could start ends at once, as by control and C
            signal.signal(signal.SIGALRM, lambda *unused: os.kill(os.getpid(), signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, 4)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv = [f"mindspeed-ms {name}", *words]
        status = main_of(name)() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:  # noqa: BLE001  (reported, as the interpreter does)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _give_up_root() -> None:
    """Without the rights to read and write everything: modes of files count."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) == 0:
        for word in (0, 1):  # effective and permitted, CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
            data[word] &= ~0b110
        libc.capset(header, data)


def fault_of(bench: Bench, answer: Answer, out: Path, limit: int | None = None) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if answer.status == -999:
        return "hangs"
    if answer.status not in (0, 1, 2):
        return f"ends with status {answer.status}"
    if "Traceback (most" in answer.err + answer.out:
        return "shows a traceback"
    lines = [line for line in answer.err.splitlines() if "error: " in line]
    if answer.status == 2 and len(lines) != 1 and "refused" not in answer.out:
        return f"{len(lines)} lines of errors"
    if "\x1b[31m" in answer.err:
        return "control characters reach the terminal"
    left = [path for path in out.rglob("*") if re.search(r"[0-9a-f]{32}|partial", path.name)]
    if left:
        return f"leaves {left}"
    now = digests(bench.sound)
    if any(now.get(name) != digest for name, digest in bench.digests.items()):
        return "changes what it was given"
    if limit is not None and answer.status == 0:
        full = [path for path in out.rglob("*") if path.is_file() and path.stat().st_size >= limit]
        return f"writes half of {full} and says nothing" if full else None
    return None


def main() -> None:
    """Try some seeds."""
    root = Path(sys.argv[1])
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    first, count = (int(word) for word in (sys.argv[2:4] or ["0", "100"]))
    names = sys.argv[4:] or list(COMMANDS)
    for name in names:
        flags_of(name)
    bench = Bench(root)
    for seed in range(first, first + count):
        name, words, out = bench.words(seed, names)
        limit = random.Random(seed).choice([None, None, None, 0, 1, 100, 4096])
        answer = answered(name, words, out, limit)
        fault = fault_of(bench, answer, out, limit)
        if fault or os.environ.get("ALL"):
            shown = [f"{word!r:.120}" for word in words]
            text = answer.err[-1500:] if fault else answer.err[-300:]
            sys.stdout.write(
                f"=== {seed} {name} {limit} {' '.join(shown)}\n{fault} status {answer.status} "
                f"{answer.seconds:.1f} s\n{answer.out[-300:]}\n{text}\n"
            )
            sys.stdout.flush()
        if fault and "changes" in fault:
            shutil.rmtree(root)
            root.mkdir()
            bench = Bench(root)
        else:
            shutil.rmtree(out, ignore_errors=True)
    sys.stdout.write(f"{count} tried\n")


if __name__ == "__main__":
    main()
