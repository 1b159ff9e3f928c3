# SPDX-License-Identifier: Apache-2.0
"""``--dry-run``: from a command line to a plan, without another rank, a device or a data file."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mindspeed_ms.backend import launch
from mindspeed_ms.config import AllConfig, unsupported_reason
from mindspeed_ms.config.build import assemble
from mindspeed_ms.data.tokenizers import build_tokenizer
from mindspeed_ms.engine.datasets import require_rows, tokenizer_of
from mindspeed_ms.engine.observe.record import FILE_NAME, read_record
from mindspeed_ms.engine.output import print_rank_0, set_up_output
from mindspeed_ms.engine.start import check_schedule
from mindspeed_ms.files.content import taken_apart
from mindspeed_ms.planning.calibrate import Measured, calibrated
from mindspeed_ms.planning.plan import make_plan
from mindspeed_ms.planning.report import plan_lines
from mindspeed_ms.planning.suggest import search, suggestion_lines, with_memory
from mindspeed_ms.planning.timing import Device
from mindspeed_ms.training.arguments import validate_args
from mindspeed_ms.training.entry import USER_ERROR_STATUS
from mindspeed_ms.training.flags.vocabulary import rows_of
from mindspeed_ms.training.from_args import init_configs_from_args
from mindspeed_ms.training.one_line import one_line
from mindspeed_ms.training.print_arguments import config_lines, dotted, print_arguments
from mindspeed_ms.training.scale_down import assume_sizes, scale_down, sizes_of_flags
from mindspeed_ms.training.teacher_description import with_teacher

TYPICAL_VOCABULARIES = MappingProxyType(
    {
        "GPT2BPETokenizer": 50257,
        "GPTSentencePieceTokenizer": 32000,
        "SentencePieceTokenizer": 32000,
        "Llama2Tokenizer": 32000,
        "HuggingFaceTokenizer": 128256,
        "PretrainedFromHF": 128256,
        "TikTokenizer": 131072,
        "SFTTokenizer": 131072,
        "LLama2Tokenizer": 32000,
        **dict.fromkeys(("LLama3Tokenizer", "Llama3TokenizerFS"), 128256),
        **dict.fromkeys(("Qwen2Tokenizer", "Qwen3Tokenizer", "Qwen2TokenizerFS"), 151643),
        "QwenTokenizerFS": 151851,
        "AquilaTokenizerFS": 100008,
        "DeepSeekV2Tokenizer": 100002,
        "DeepSeekV3Tokenizer": 128815,
    }
)
"""Tokens of the usual vocabulary of a tokenizer type, for plans without its file."""

_USUAL_TOKENS = 50257
"""Of GPT-2, and of types that nobody here knows."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A command line that a plan can be made of."""

    config: AllConfig
    world_size: int
    assumptions: tuple[str, ...]
    """What the plan takes for granted, one line each."""


def resolve(args: argparse.Namespace) -> Resolved:
    """Complete the arguments of a dry run and build the configuration.

    Raises:
        ValueError: settings that a run would refuse.
    """
    assumptions = [*sizes_of_flags(args), *assume_sizes(args)]
    world_size = args.world_size
    if args.scale_down:
        world_size = world_size or 1
        assumptions += scale_down(args, world_size)
    assumptions += _assume_vocabulary(args)
    if world_size is None:
        world_size = smallest_world(args)
        assumptions.append(f"{world_size} ranks, the fewest that fit; give --world-size for others")
    validate_args(args, world_size)
    config = with_teacher(init_configs_from_args(args)).validate(world_size)
    check_schedule(config, world_size)
    assumptions += _compare_vocabulary(config)
    return Resolved(config, world_size, tuple(assumptions))


def dry_run(args: argparse.Namespace) -> int:
    """Print what a run would need; return the process's status.

    The answer comes first, then what the plan takes for granted, then the arguments, as far as
    ``--print-args`` wants them; ``all`` adds every field of the configuration. It is 2 when the run
    would be refused. Under a launcher its first process prints, and plans for as many ranks as it
    started.

    Raises:
        ValueError: settings that a run would refuse; nothing has been printed.
    """
    told = launch.told_by_launcher()
    if told is not None:
        rank, size = told
        if rank != 0:
            return 0  # one process prints the plan
        args.world_size = args.world_size or size
    set_up_output(args.logging_level)
    try:
        resolved = resolve(args)
    except ValueError as error:
        if args.refusals:  # what is refused by name explains more than what followed from it
            raise ValueError(args.refusals[0]) from error
        raise
    config, world_size = resolved.config, resolved.world_size
    missing = unsupported_reason(config)
    device, notes = Device(), list(resolved.assumptions)
    if args.calibrate is not None:
        device, note = calibrated(device, measured_run(args.calibrate))
        notes.append(f"{note} ({args.calibrate})")
    device = with_memory(device, args.device_memory, args.device_tflops)
    lines = plan_lines(make_plan(config, world_size, device))
    if args.suggest:
        lines += suggestion_lines(search(config, world_size, device), config)
    lines += [f"assumed: {line}" for line in notes]
    lines += [*args.refusals, *(f"refused: {line}" for line in missing)]
    for line in lines:
        print_rank_0(one_line(line) if line in args.refusals else line)
    print_arguments(args)
    if args.print_args == "all":
        print_rank_0("----------------- resolved configuration ------------------")
        for name, value in config_lines(config):
            print_rank_0(dotted(name, value))
        print_rank_0("------------- end of resolved configuration ---------------")
    return USER_ERROR_STATUS if args.refusals or missing else 0


def measured_run(folder: str) -> Measured:
    """What the record of a run says for ``--calibrate``.

    Raises:
        ValueError: there is no record, or it lacks the configuration.
    """
    try:
        entries = read_record(Path(folder))
    except OSError as error:
        raise ValueError(
            f"--calibrate {folder} has no readable {FILE_NAME} ({error.strerror}); give the --save "
            "folder of a run, which writes one"
        ) from None
    starts = [place for place, entry in enumerate(entries) if entry["kind"] == "start"]
    if not starts:
        raise ValueError(f"--calibrate {folder}: its {FILE_NAME} has no start; give another run")
    start, *since = entries[starts[-1] :]  # what is older may be of another layout, and warms up
    with taken_apart(Path(folder, FILE_NAME), "the record of a run"):
        environment = start["environment"]
        return Measured(
            config=assemble(start["config"]),
            world_size=int(start["world_size"]),
            seconds=[float(entry["seconds"]) for entry in since if entry["kind"] == "step"],
            is_cpu=environment["device"] == "cpu",
            cores=int(environment["cores"]),
        )


def smallest_world(args: argparse.Namespace) -> int:
    """Ranks of one copy of the model, or as many copies as its experts are spread over.

    A global batch that micro-batches of one copy do not divide leaves no more choice either.
    """
    tensor = args.tensor_model_parallel_size or 1
    stages = args.pipeline_model_parallel_size or 1
    dense = tensor * stages * (args.context_parallel_size or 1)
    expert_tensor = args.expert_tensor_parallel_size or tensor
    experts = expert_tensor * (args.expert_model_parallel_size or 1) * stages
    instances = args.num_distributed_optimizer_instances or 1
    return math.lcm(dense * instances, experts)


def _compare_vocabulary(config: AllConfig) -> list[str]:
    """Hold the tokenizer against the model's rows, if its files are here.

    Raises:
        ValueError: the tokenizer has more tokens.
    """
    if config.dataset_config.tokenizer_type is None:
        return []
    try:
        tokenizer = tokenizer_of(config)
    except (ValueError, OSError, RuntimeError) as error:
        return [f"a tokenizer that fits the model's rows; it cannot be read here ({error})"]
    require_rows(config, tokenizer)
    return []


def _assume_vocabulary(args: argparse.Namespace) -> list[str]:
    """Fill the padded vocabulary: the tokenizer's if its files are there, else a usual size."""
    kind = args.tokenizer_type
    if args.padded_vocab_size is not None:
        return []
    if args.yaml and kind is None:
        return []  # a run would miss the size, and says so
    try:
        tokens, notes = int(build_tokenizer(args).vocab_size), []
    except (ValueError, OSError, RuntimeError):
        kind = kind or args.patch_tokenizer_type
        if kind and kind.startswith("BertWordPiece"):
            raise ValueError(
                f"--tokenizer-type {kind} is BERT's, and models here are GPTs; use another, as "
                "HuggingFaceTokenizer"
            ) from None
        usual = args.vocab_size or TYPICAL_VOCABULARIES.get(kind or "", _USUAL_TOKENS)
        tokens = int(usual)
        notes = [
            f"a vocabulary of {tokens} tokens, usual for {kind or 'a GPT'}, because its files "
            "cannot be read; give --padded-vocab-size for another"
        ]
    args.padded_vocab_size = rows_of(tokens, args)
    return notes
