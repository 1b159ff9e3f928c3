# SPDX-License-Identifier: Apache-2.0
"""``mindspeed_ms.toolkit.launch.merge_hccl``, where MindFormers has it."""

from mindspeed_ms.toolkit.launch.merge_hccl import main

if __name__ == "__main__":
    raise SystemExit(main())
