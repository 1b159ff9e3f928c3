# SPDX-License-Identifier: Apache-2.0
"""Compare a run with a recorded one of Megatron's: ``mindspeed-ms parity``."""

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.command.parity import main

if __name__ == "__main__":
    raise SystemExit(main())
