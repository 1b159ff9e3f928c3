# SPDX-License-Identifier: Apache-2.0
"""Make the report of one or several runs: ``mindspeed-ms report``."""

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.command.report import main

if __name__ == "__main__":
    raise SystemExit(main())
