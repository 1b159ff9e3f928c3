# SPDX-License-Identifier: Apache-2.0
"""The toolkit's command: ``mindspeed_ms.toolkit.run``."""

from mindspeed_ms.toolkit.run import Options, main, parse, run_train

__all__ = ["Options", "main", "parse", "run_train"]

if __name__ == "__main__":
    raise SystemExit(main())
