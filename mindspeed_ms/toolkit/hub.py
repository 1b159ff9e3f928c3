# SPDX-License-Identifier: Apache-2.0
"""From a name to local files. Nothing is downloaded.

A name is looked for as a folder, then below ``$MINDSPEED_MS_HOME``, then below
``./checkpoint_download``, where MindFormers keeps what it fetched, one folder a family.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import env
from mindspeed_ms.toolkit.given import shown

HOME_VARIABLE = "MINDSPEED_MS_HOME"
DOWNLOADS = "checkpoint_download"
REMOTE_WORDS = frozenset(
    {
        "attn_implementation",
        "cache_dir",
        "code_revision",
        "device_map",
        "force_download",
        "local_files_only",
        "low_cpu_mem_usage",
        "proxies",
        "resume_download",
        "revision",
        "token",
        "trust_remote_code",
        "use_auth_token",
    }
)
"""Keywords of ``transformers``' that say how files are fetched, or which kernels compute."""


_NOT_SERVED = {
    "load_in_8bit": "weights stay as they are; decodes_in_int8 = True generates with eight bits",
    "load_in_4bit": "weights stay as they are; decodes_in_int8 = True generates with eight bits",
    "quantization_config": "quantized weights are not read",
    "gguf_file": "files of GGUF are not read",
    "from_tf": "checkpoints of TensorFlow are not read",
    "from_flax": "checkpoints of Flax are not read",
    "output_loading_info": "a checkpoint that does not fit is an error that names the tensors",
    "ignore_mismatched_sizes": "a checkpoint that does not fit is an error that names the tensors",
}
"""Keywords of ``transformers`` that ask for what is not there -> what is instead."""


def without_remote(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without ``REMOTE_WORDS``.

    Raises:
        ValueError: one asks for what is not there.
    """
    for name, reason in _NOT_SERVED.items():
        if options.get(name):
            raise ValueError(f"{name} is given, but {reason}; leave it out")
    left_out = REMOTE_WORDS | _NOT_SERVED.keys()
    return {key: value for key, value in options.items() if key not in left_out}


def below(name: str | os.PathLike[str], subfolder: str | None) -> str | os.PathLike[str]:
    """The name of a folder below another, as ``subfolder`` says; the folder itself without."""
    return os.path.join(checked_name(name), subfolder) if subfolder else name


def checked_name(name: object) -> str:
    """The name or path that a user gave, as text.

    Raises:
        TypeError: it is neither a text nor a path.
    """
    if isinstance(name, str | os.PathLike) and isinstance(text := os.fspath(name), str):
        try:
            is_possible = b"\0" not in os.fsencode(text)
        except UnicodeEncodeError:
            is_possible = False
        if not is_possible:
            raise ValueError(f"{text!r:.80} is no name that a file can have; correct it")
        return text
    raise TypeError(
        f"{shown(name)} is neither a name nor a path; give the folder of a model or tokenizer, or "
        "the name of a size, as text"
    )


def family_of(name: str) -> str:
    """Family of a model name: what stands before the first underscore.

    >>> family_of("gpt2_13b"), family_of("some/llama_7b"), family_of("gpt2")
    ('gpt2', 'llama', 'gpt2')
    """
    return name.rstrip("/").rpartition("/")[2].partition("_")[0]


def places(name: str | os.PathLike[str]) -> list[Path]:
    """Folders in which a name's files may lie, the first to be looked at first."""
    name = checked_name(name)
    found = [Path(name)]
    home = env.get(HOME_VARIABLE)
    if home:
        found.append(Path(home) / name)
    family = family_of(name)
    found += [Path(DOWNLOADS) / family / name, Path(DOWNLOADS) / family]
    return list(dict.fromkeys(found))


def find(name: str | os.PathLike[str], wanted: Sequence[str]) -> Path | None:
    """The first place of a name that holds one of the wanted files.

    Args:
        name: a folder or a model name.
        wanted: file names or patterns (``*.safetensors``); one match makes a place the right one.
    """
    for place in places(name):
        if place.is_dir() and any(next(place.glob(pattern), None) for pattern in wanted):
            return place
    return None


def folder_of(
    name: str | os.PathLike[str], wanted: Sequence[str], instead: str = "give a local folder"
) -> Path:
    """Like ``find``, for files that must be there.

    Args:
        name: a folder or a model name.
        wanted: file names or patterns.
        instead: what else the user can do, for the error.

    Raises:
        OSError: no place has one of the files; says where they were looked for.
    """
    found = find(name, wanted)
    if found is not None:
        return found
    looked = [
        f"{place} ({'has none of the files' if place.is_dir() else 'no folder'})"
        for place in places(name)
    ]
    unset = "" if env.get(HOME_VARIABLE) else f"; {HOME_VARIABLE} is not set"
    raise OSError(
        f"nothing found for {os.fspath(name)!r}: looked in {', '.join(looked)}{unset}; files "
        f"wanted: {', '.join(wanted)}; nothing is downloaded: {instead}"
    )
