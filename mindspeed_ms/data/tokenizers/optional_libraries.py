# SPDX-License-Identifier: Apache-2.0
"""Libraries that only some tokenizers need, loaded when one of them is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def load(library: str, needed_for: str, extra: str = "tokenizers") -> ModuleType:
    """Import a library that comes with one of the project's extras.

    Raises:
        RuntimeError: it is not installed; says what for and how to install it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise RuntimeError(
            f"{needed_for} needs the library {library.partition('.')[0]}, which is not installed "
            f"({error}); run: pip install 'mindspeed_ms[{extra}]'"
        ) from error


def load_if_installed(library: str) -> ModuleType | None:
    """Import a library; None when it is not installed."""
    if importlib.util.find_spec(library) is None:
        return None
    return importlib.import_module(library)


def is_fault(error: BaseException) -> bool:
    """Whether a library raised it: a plain Exception, or a panic of Rust, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """A library's error, which may fill a page, as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
