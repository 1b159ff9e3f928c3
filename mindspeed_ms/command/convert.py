# SPDX-License-Identifier: Apache-2.0
"""Convert, inspect and compare checkpoints of any format and layout.

    mindspeed-ms convert SOURCE TARGET --to megatron --tensor-model-parallel-size 2
    mindspeed-ms convert inspect FOLDER
    mindspeed-ms convert diff FIRST SECOND

Formats are told apart by what lies in the folder: this project's, Megatron-LM's ``torch`` and
``torch_dist``, Hugging Face safetensors, MindSpore ``.ckpt``. Neither torch nor MindSpore is
needed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mindspeed_ms.backend.parent import tie_to
from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.formats import compare
from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.find import find_checkpoint
from mindspeed_ms.formats.source import kind_of
from mindspeed_ms.toolkit.launch.command import Parser, telling, user_errors
from mindspeed_ms.toolkit.models import export, hub_upload
from mindspeed_ms.toolkit.models.file_size import file_size
from mindspeed_ms.training import conversion as engine

DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


def say(line: str) -> None:
    """A line on standard output."""
    sys.stdout.write(f"{line}\n")


def progress_bar() -> Callable[[int, int], None]:
    """What shows bytes done of all: a bar where there is a terminal and ``tqdm``, else nothing."""
    if not sys.stdout.isatty() or importlib.util.find_spec("tqdm") is None:
        return lambda done, total: None
    bar = importlib.import_module("tqdm").tqdm(unit="B", unit_scale=True, unit_divisor=1000)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


def add_convert_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that describe what is written."""
    add = parser.add_argument
    add("source", type=Path, help="folder of a run, of one checkpoint or of a model, or a file")
    add("target", type=Path, help="folder of the result")
    add("--to", choices=engine.TARGETS, default="mindspeed_ms", help="format of the result")
    add("--tensor-model-parallel-size", type=int, default=1)
    add("--pipeline-model-parallel-size", type=int, default=1)
    add("--virtual-pipeline-model-parallel-size", type=int)
    add(
        "--num-layer-list",
        type=telling(layer_list),
        help="layers per stage, 4,4,6 or [[2,2],[2,2]] with virtual stages",
    )
    add("--expert-model-parallel-size", type=int, default=1)
    add("--data-parallel-size", type=int, default=1, help="for rank numbers and bucket layouts")
    add("--names", choices=("local", "te", "legacy"), default="local", help="Megatron's naming")
    add(
        "--use-distributed-optimizer",
        action=argparse.BooleanOptionalAction,
        help="write distrib_optim.pt; default as in the source",
    )
    add("--ema", action="store_true", help="the moving average of the weights, as weights")
    add("--no-optimizer", action="store_true", help="weights only")
    add("--dtype", choices=sorted(DTYPES), help="type of the weights; default that of the source")
    add("--vocab-size", type=int, help="tokens in use; rows behind them are padding")
    add("--make-vocab-size-divisible-by", type=int, default=128)
    add("--container", choices=("safetensors", "ckpt"), help="kind of the written files")
    add("--ckpt-prefix", default="network", help="names of MindSpore files")
    add("--all-data-parallel-copies", action="store_true", help="MindSpore: files of all ranks")
    add("--base", type=Path, help="model that the adapters of the source are for; they are merged")
    add("--hf-model-type", help="kind of Hugging Face model to write, where several fit")
    add(
        "--max-shard-size",
        type=telling(file_size),
        help="Hugging Face: of one file, as 5GB or 500MB",
    )
    add(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare logits of both sides on a few tokens; needs MindSpore",
    )
    add(
        "--push-to-hub",
        type=telling(hub_upload.repository),
        metavar="OWNER/NAME",
        help="Hugging Face: upload the folder",
    )
    add_source_flags(parser)


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say what the source does not say itself."""
    add = parser.add_argument
    add("--ckpt-step", type=int, help="iteration to read; default the newest")
    add("--source-tensor-model-parallel-size", type=int, help="of MindSpore files")
    add("--model-config", type=Path, help="YAML or config.json that describes the model")


def options_of(arguments: argparse.Namespace) -> engine.ConvertOptions:
    """Options of a conversion from the command line."""
    return engine.ConvertOptions(
        to=arguments.to,
        tensor=arguments.tensor_model_parallel_size,
        pipeline=arguments.pipeline_model_parallel_size,
        virtual_pipeline=arguments.virtual_pipeline_model_parallel_size,
        num_layer_list=arguments.num_layer_list,
        expert=arguments.expert_model_parallel_size,
        data_parallel=arguments.data_parallel_size,
        naming=arguments.names,
        distributed_optimizer=arguments.use_distributed_optimizer,
        with_optimizer=not (arguments.no_optimizer or arguments.ema),
        ema=arguments.ema,
        dtype=DTYPES.get(arguments.dtype),
        vocab_size=arguments.vocab_size,
        make_vocab_size_divisible_by=arguments.make_vocab_size_divisible_by,
        container=arguments.container,
        prefix=arguments.ckpt_prefix,
        all_copies=arguments.all_data_parallel_copies,
        model_type=arguments.hf_model_type,
        base=arguments.base,
        max_shard_bytes=arguments.max_shard_size,
        **source_options(arguments),
    )


def source_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about the source."""
    return {
        "step": arguments.ckpt_step,
        "source_tensor": arguments.source_tensor_model_parallel_size,
        "model_config": arguments.model_config,
    }


def layer_list(text: str) -> tuple:
    """Layers per stage, and per chunk if there are virtual stages.

    Raises:
        ValueError: something else than numbers.

    >>> layer_list("[[2,2],[1,3]]")
    ((2, 2), (1, 3))
    """
    if not re.fullmatch(r"[\d,\[\] ]+", text):
        raise ValueError(f"{text!r} are no numbers of layers; write 4,4,6 or [[2,2],[1,3]]")
    rows = [
        tuple(int(word) for word in row.replace("[", "").split(",") if word.strip())
        for row in text.strip().strip("[]").split("]")
        if row.strip(" ,[")
    ]
    return rows[0] if len(rows) == 1 else tuple(rows)


def run_convert(arguments: argparse.Namespace) -> int:
    """Convert; print what was done."""
    if arguments.push_to_hub and arguments.to != "huggingface":
        raise ValueError(f"--push-to-hub uploads Hugging Face models, not --to {arguments.to}")
    if arguments.push_to_hub:
        optional_libraries.load("huggingface_hub", "--push-to-hub", "hub")  # before the work
    report = engine.convert(
        arguments.source, arguments.target, options_of(arguments), progress_bar()
    )
    notes = list(report.notes)
    if arguments.to == "huggingface":
        notes += export.complete(report.folder, report.config, report.has_origin)
    say(f"{report.num_tensors} weights, {report.num_bytes / 1e6:.1f} MB -> {report.folder}")
    for note in notes:
        say(f"  {note}")
    if arguments.verify:
        say(f"  {verified(arguments, report.folder)}")
    if arguments.push_to_hub:
        say(f"  uploaded: {hub_upload.push_to_hub(report.folder, arguments.push_to_hub)}")
    return 0


_VERIFY = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("mindspeed_ms.toolkit.verification", run_name="__main__", alter_sys=True)
"""
"""A package that is not installed is found where this module was."""


def verified(arguments: argparse.Namespace, target: Path) -> str:
    """Compare both sides in a process of its own, which needs MindSpore; a line about it.

    Raises:
        VerificationError: the result computes otherwise than its source.
    """
    if importlib.util.find_spec("mindspore") is None:
        return "not verified: computing logits needs MindSpore, which is not installed"
    source = {**source_options(arguments), "source": arguments.source, "target": target}
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-c", _VERIFY, str(root), json.dumps(source, default=str)]
    tie = tie_to(os.getpid(), signal.SIGKILL)
    done = subprocess.run(
        words, capture_output=True, text=True, errors="replace", check=False, preexec_fn=tie
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise VerificationError(f"verification of {target}: {lines[-1]}")
    return done.stdout.strip().splitlines()[-1]


class VerificationError(ValueError):
    """The result of a conversion is not what its source is."""


def run_inspect(arguments: argparse.Namespace) -> int:
    """Print what a checkpoint holds, from its indices and headers only."""
    options = engine.ConvertOptions(**source_options(arguments))
    catalog, _ = engine.open_source(arguments.source, options)
    found = find_checkpoint(arguments.source, arguments.ckpt_step)
    say(f"{catalog.source}, format {found.kind if found else 'unknown'}")
    for key, value in compare.describe(catalog).items():
        say(f"  {key}: {value}")
    for line in tensor_lines(catalog, arguments.pieces):
        say(line)
    files = {piece.path for tensor in catalog.tensors.values() for piece in tensor.pieces}
    count = sum(tensor.num_bytes for tensor in catalog.tensors.values())
    say(f"{len(catalog.tensors)} tensors, {count / 1e6:.1f} MB in {len(files)} files")
    return 0


def tensor_lines(catalog: Catalog, with_pieces: bool) -> list[str]:
    """A line for every tensor: type, shape, pieces, digest."""
    lines = []
    for name, tensor in sorted(catalog.tensors.items()):
        lines.append(
            f"  {tensor.dtype:>5} {str(list(tensor.shape)):>16} {tensor.num_bytes:>12} B  "
            f"{len(tensor.pieces):>3} x  {tensor.digest or '-':>16}  {name}"
        )
        for piece in tensor.pieces if with_pieces else ():
            span = piece.span
            lines.append(
                f"          {piece.path} +{piece.offset}: {span.region.to_json()} "
                f"[{span.start}:{span.stop}]"
            )
    return lines


def run_diff(arguments: argparse.Namespace) -> int:
    """Print where two checkpoints differ; status 1 if they do."""
    options = engine.ConvertOptions(**source_options(arguments))
    first, _ = engine.open_source(arguments.source, options)
    second, _ = engine.open_source(arguments.second, engine.ConvertOptions())
    if arguments.weights_only:
        for catalog in (first, second):
            catalog.tensors = {
                name: tensor for name, tensor in catalog.tensors.items() if not kind_of(name)
            }
    found = compare.diff(first, second, with_values=not arguments.metadata_only)
    for item in found:
        say(f"  {item.name}: {item.what}")
    if found:
        say(f"{len(found)} differences")
        return 1
    say(f"equal: {len(first.tensors)} tensors")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser.of(__doc__, alone="convert_ckpt")
    commands = parser.add_subparsers(dest="command", required=True)
    add_convert_flags(commands.add_parser("convert", help="convert a checkpoint"))
    show = commands.add_parser("inspect", help="list tensors, layout and digests")
    show.add_argument("source", type=Path)
    show.add_argument("--pieces", action="store_true", help="say where every piece lies")
    add_source_flags(show)
    compare = commands.add_parser("diff", help="compare two checkpoints")
    compare.add_argument("source", type=Path)
    compare.add_argument("second", type=Path)
    compare.add_argument("--weights-only", action="store_true")
    compare.add_argument("--metadata-only", action="store_true", help="names, shapes and types")
    add_source_flags(compare)
    return parser


COMMANDS = {"convert": run_convert, "inspect": run_inspect, "diff": run_diff}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, ``convert`` if the first word is none; return its status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] not in COMMANDS and words[0] not in ("-h", "--help"):
        words.insert(0, "convert")
    arguments = make_parser().parse_args(words)
    with user_errors():
        return COMMANDS[arguments.command](arguments)
