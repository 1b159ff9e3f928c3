# SPDX-License-Identifier: Apache-2.0
"""Write docs/families.md from the families and the cases that their tests run over.

Run ``python tools/families_document.py``; a test fails while the document is not current.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from family_document import families_document  # noqa: E402 - beside the tests

if __name__ == "__main__":
    (ROOT / "docs" / "families.md").write_text(families_document(), encoding="utf-8")
