# SPDX-License-Identifier: Apache-2.0
"""Print a completion script for a shell; source it, or keep it where the shell looks for them.

mindspeed-ms completion bash > ~/.local/share/bash-completion/completions/mindspeed-ms
mindspeed-ms completion zsh > ~/.zfunc/_mindspeed-ms
mindspeed-ms completion fish > ~/.config/fish/completions/mindspeed-ms.fish
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from mindspeed_ms.command import configs
from mindspeed_ms.command.dispatch import COMMANDS, PROGRAM
from mindspeed_ms.toolkit.launch.command import Parser
from mindspeed_ms.training.flags import ROWS
from mindspeed_ms.training.flags.synonyms import acts

_FRONTS_OF_TRAINING = ("train", "plan", "evaluate", "parity", "compare-layouts")
_WORDS: Mapping[str, tuple[str, ...]] = {
    "tokenizer": ("train",),
    "convert": ("inspect", "diff"),
    "configs": ("list", "show", "copy"),
    "completion": ("bash", "zsh", "fish"),
}


def words() -> dict[str, list[str]]:
    """What may follow each sub-command, beside names of files: flags that act, and words."""
    flags = sorted(row.names[0] for row in ROWS if acts(row))
    found = {name: list(_WORDS.get(name, ())) for name in COMMANDS}
    for name in _FRONTS_OF_TRAINING:
        found[name] += [*flags, *(["--help-all"] if name == "train" else [])]
    found["configs"] += list(configs.names())
    return {name: [*rest, "--help"] for name, rest in found.items()}


def bash() -> str:
    """A function for bash's ``complete``."""
    cases = "\n".join(f'    {name}) words="{" ".join(rest)}" ;;' for name, rest in words().items())
    return f"""# bash completion of {PROGRAM}
_mindspeed_ms() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(COMMANDS)} --help --version" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _mindspeed_ms {PROGRAM}
"""


def zsh() -> str:
    """A function for zsh's completion system; works sourced and from ``fpath``."""
    commands = "\n".join(
        f"    '{name}:{summary.replace(chr(39), '')}'" for name, (_, summary) in COMMANDS.items()
    )
    cases = "\n".join(f"    {name}) found=({' '.join(rest)}) ;;" for name, rest in words().items())
    return f"""#compdef {PROGRAM}
_mindspeed_ms() {{
  local -a commands found
  commands=(
{commands}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case "$words[2]" in
{cases}
  esac
  compadd -- $found
  _files
}}
if [ "$funcstack[1]" = "_{PROGRAM}" ]; then
  _mindspeed_ms "$@"
else
  compdef _mindspeed_ms {PROGRAM}
fi
"""


def fish() -> str:
    """Lines for fish's ``complete``."""
    lines = [f"# fish completion of {PROGRAM}"]
    for name, (_, summary) in COMMANDS.items():
        told = summary.replace("'", "")
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {name} -d '{told}'")
    for name, rest in words().items():
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [
            f"complete -c {PROGRAM} {seen} "
            + (f"-l {word.removeprefix('--')}" if word.startswith("--") else f"-a {word}")
            for word in rest
        ]
    return "\n".join(lines) + "\n"


_SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script of a shell."""
    parser = Parser.of(__doc__)
    parser.add_argument("shell", choices=sorted(_SHELLS))
    sys.stdout.write(_SHELLS[parser.parse_args(argv).shell]())
    return 0
