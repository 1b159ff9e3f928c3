# SPDX-License-Identifier: Apache-2.0
"""``python -m mindspeed_ms.command``, for launchers that start modules."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # An interrupt while modules load is no event to describe; ``dispatch`` takes this back.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from mindspeed_ms.command.dispatch import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
