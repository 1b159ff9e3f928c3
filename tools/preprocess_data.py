# SPDX-License-Identifier: Apache-2.0
"""Turn text into the token files that training reads: ``mindspeed-ms preprocess``."""

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.command.preprocess import main

if __name__ == "__main__":
    raise SystemExit(main())
