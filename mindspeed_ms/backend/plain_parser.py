# SPDX-License-Identifier: Apache-2.0
"""A parser of command lines that drops no value."""

from __future__ import annotations

import argparse
from typing import Any


class PlainParser(argparse.ArgumentParser):
    """Refuses ``--flag=--``.

    ``argparse`` of Python below 3.13 takes those dashes for the end of flags, and an empty list,
    whatever the flag's type, for its value.
    """

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings == ["--"]:
            self.error(f"argument {'/'.join(action.option_strings)}: -- is no value; give one")
        return super()._get_values(action, arg_strings)
