# SPDX-License-Identifier: Apache-2.0
"""Go on with prompts from the command line, from a checkpoint of any format in any layout.

Example: mindspeed-ms generate --load out --prompt "Once upon a time" --max-new-tokens 20

Under mpiexec, torchrun or msrun the layout flags share the model out, as in training; the first
rank prints. Without --prompt, every line of standard input (or of --prompt-file) is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import comm
from mindspeed_ms.files.regular_file import read_text
from mindspeed_ms.toolkit.generation.config import DEFAULTS
from mindspeed_ms.toolkit.generation.streamers import TextStreamer
from mindspeed_ms.toolkit.launch.command import Parser
from mindspeed_ms.toolkit.models import layout_flags
from mindspeed_ms.toolkit.models.auto import AutoModelForCausalLM
from mindspeed_ms.toolkit.pipelines.text_generation import RESULT, TextGenerationPipeline
from mindspeed_ms.toolkit.tokenization import of_checkpoint
from mindspeed_ms.training.entry import user_errors


def make_parser() -> argparse.ArgumentParser:
    """The flags: Megatron's, and every option of ``GenerationConfig`` under its name."""
    parser = Parser.of(__doc__)
    parser.add_argument("--load", required=True, help="folder of the checkpoint")
    parser.add_argument("--prompt", action="append", help="a text to go on with; may be repeated")
    parser.add_argument("--prompt-file", type=Path, help="a prompt per line")
    parser.add_argument("--new-only", action="store_true", help="leave the prompt out")
    parser.add_argument("--stream", action="store_true", help="show the text while it grows")
    parser.add_argument("--json", action="store_true", help="a JSON object per prompt")
    parser.add_argument("--seed", type=int, help="of drawn tokens")
    parser.add_argument(
        "--int8", action="store_true", help="steps read weights as eight bits (one rank)"
    )
    layout_flags.add_flags(parser)
    of_checkpoint.add_flags(parser)
    options = parser.add_argument_group("generation; values are JSON, names those of transformers")
    for name in DEFAULTS:
        spelled = name.replace("_", "-")
        names = dict.fromkeys((f"--{spelled}", f"--{name}"))
        is_switch = isinstance(DEFAULTS[name], bool) and name != "early_stopping"
        extra: dict[str, Any] = {"nargs": "?", "const": True} if is_switch else {}
        options.add_argument(*names, dest=name, type=_value, default=argparse.SUPPRESS, **extra)
    return parser


def _value(text: str) -> Any:
    """JSON, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False}.get(text, text)


def generate(arguments: argparse.Namespace) -> None:
    """Print a text per prompt."""
    given = vars(arguments)
    prompts = arguments.prompt or _lines(arguments.prompt_file)
    tokenizer = of_checkpoint.tokenizer_of(arguments, Path(arguments.load))
    loading = layout_flags.loading_options(arguments)
    model = AutoModelForCausalLM.from_pretrained(arguments.load, **loading)
    model.decodes_in_int8 = arguments.int8
    options = {name: given[name] for name in DEFAULTS if name in given}
    pipe = TextGenerationPipeline(model, tokenizer, return_full_text=not arguments.new_only)
    is_first = comm.get_rank() == 0
    for prompt in prompts:
        streamer = None
        if arguments.stream:
            streamer = TextStreamer(tokenizer, skip_prompt=arguments.new_only)
        (found,) = pipe(prompt, seed=arguments.seed, streamer=streamer, **options)
        if not is_first or arguments.stream:
            continue
        if arguments.json:
            sys.stdout.write(json.dumps({"prompt": prompt, **found}, ensure_ascii=False) + "\n")
        else:
            sys.stdout.writelines(f"{text}\n" for text in found[RESULT])


def _lines(path: Path | None) -> list[str]:
    """Prompts of a file, or of standard input."""
    text = sys.stdin.read() if path is None else read_text(path)
    prompts = [line for line in text.splitlines() if line]
    if not prompts:
        raise ValueError("there is no prompt; give --prompt, --prompt-file or lines of input")
    return prompts


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return the status."""
    arguments = make_parser().parse_args(argv)
    with user_errors():
        generate(arguments)
    return 0
