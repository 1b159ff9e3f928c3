# SPDX-License-Identifier: Apache-2.0
"""Megatron's side of ``mindspeed_ms.engine.train_loop``: the same module.

Scripts that look into a step replace functions of the loop here, and must replace those that run.
"""

import sys

from mindspeed_ms.engine import train_loop

sys.modules[__name__] = train_loop
