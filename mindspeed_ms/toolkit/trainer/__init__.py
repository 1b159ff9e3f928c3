# SPDX-License-Identifier: Apache-2.0
"""Tasks: what the front doors ask for, done by the one training loop."""

from mindspeed_ms.toolkit.trainer.tasks import run_task

__all__ = ["run_task"]
