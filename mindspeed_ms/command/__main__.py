# SPDX-License-Identifier: Apache-2.0
"""``python -m mindspeed_ms.command``, for launchers that start modules."""

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.command.dispatch import main

if __name__ == "__main__":
    raise SystemExit(main())
