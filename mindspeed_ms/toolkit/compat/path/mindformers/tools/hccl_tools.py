# SPDX-License-Identifier: Apache-2.0
"""``mindspeed_ms.toolkit.launch.hccl_tools``, where MindFormers has it."""

from mindspeed_ms.toolkit.launch.hccl_tools import main

if __name__ == "__main__":
    raise SystemExit(main())
