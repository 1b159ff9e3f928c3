# SPDX-License-Identifier: Apache-2.0
"""Go on with prompts from the command line: ``mindspeed-ms generate``."""

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.command.generate import main

if __name__ == "__main__":
    raise SystemExit(main())
