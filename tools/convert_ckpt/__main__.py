# SPDX-License-Identifier: Apache-2.0
"""Convert, inspect and compare checkpoints: ``mindspeed-ms convert``.

python tools/convert_ckpt convert SOURCE TARGET --to megatron --tensor-model-parallel-size 2
python tools/convert_ckpt inspect FOLDER
python tools/convert_ckpt diff FIRST SECOND
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    # Before other imports: what they make stays, and to look through it again and again takes a
    # tenth of the start.
    gc.disable()

import os
import sys

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.command.convert import main

if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    result = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is on the disk; to take the interpreter apart would cost as much as 100 MB more.
    os._exit(result)
