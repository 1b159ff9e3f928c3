# SPDX-License-Identifier: Apache-2.0
"""Write docs/flags.md from the flag table.

python tools/flags_document.py
"""

from pathlib import Path

from mindspeed_ms.training.flags.markdown import flags_document

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "flags.md"


def main() -> None:
    """Write the document."""
    DOCUMENT.write_text(flags_document(), encoding="utf-8")


if __name__ == "__main__":
    main()
