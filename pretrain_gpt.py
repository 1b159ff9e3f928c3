# SPDX-License-Identifier: Apache-2.0
"""Pre-train a GPT model: Megatron's flags, or YAML files with ``--yaml``.

msrun --worker_num 4 --local_worker_num 4 --join True pretrain_gpt.py --yaml configs/tiny_gpt.yaml
"""

import gc

gc.disable()  # while two thousand modules load: the collector finds nothing and takes its time
from mindspeed_ms.interrupts import plain_interrupts  # noqa: E402

with plain_interrupts():
    from mindspeed_ms.command.train import main

gc.enable()

if __name__ == "__main__":
    gc.freeze()  # modules stay: later collections, and the one at the end, need not look at them
    main()
