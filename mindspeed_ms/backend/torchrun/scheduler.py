# SPDX-License-Identifier: Apache-2.0
"""The scheduler's process of a job: holds it together until it ends. Run as a module."""

from __future__ import annotations

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    from mindspeed_ms.backend import launch

if __name__ == "__main__":
    launch.start()
