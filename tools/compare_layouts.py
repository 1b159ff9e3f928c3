# SPDX-License-Identifier: Apache-2.0
"""Train in several layouts and show where they part: ``mindspeed-ms compare-layouts``."""

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.command.compare_layouts import main

if __name__ == "__main__":
    raise SystemExit(main())
