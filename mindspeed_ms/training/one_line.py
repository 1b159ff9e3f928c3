# SPDX-License-Identifier: Apache-2.0
"""Messages for a terminal: one line, whatever the user's words hold."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return a text on one line, with what a terminal would obey or cannot show escaped."""
    words = " ".join(text.split())
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in words
    )
