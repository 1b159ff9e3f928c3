# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of every kind, opened by name."""

import tokenizer_cases as cases

from mindspeed_ms import (
    AutoTokenizer,
)


def made(kind, folder, **settings):
    cases.KINDS[kind](folder)
    return AutoTokenizer.from_pretrained(folder, **settings)
