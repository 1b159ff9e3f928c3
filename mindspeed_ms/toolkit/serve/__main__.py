# SPDX-License-Identifier: Apache-2.0
"""``python -m mindspeed_ms.toolkit.serve``."""

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.toolkit.serve.command import main

if __name__ == "__main__":
    raise SystemExit(main())
