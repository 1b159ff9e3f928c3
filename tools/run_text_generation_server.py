# SPDX-License-Identifier: Apache-2.0
"""Serve text by Megatron's flags: ``PUT /api``, and OpenAI's addresses beside it.

Example: torchrun --nproc_per_node 2 tools/run_text_generation_server.py --load out
    --tensor-model-parallel-size 2 --port 5000
"""

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.toolkit.serve.megatron_command import main

if __name__ == "__main__":
    raise SystemExit(main())
