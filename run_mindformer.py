# SPDX-License-Identifier: Apache-2.0
"""Train, finetune, evaluate or predict as a configuration in MindFormers' style says.

python run_mindformer.py --config configs/gpt2/run_gpt2.yaml --run_mode train --dataset_dir DATA
"""

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.toolkit.run_mindformer import main

if __name__ == "__main__":
    raise SystemExit(main())
