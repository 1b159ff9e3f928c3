# SPDX-License-Identifier: Apache-2.0
"""Interrupts from the keyboard while a program still loads its modules.

Programs import this before all else, so it imports next to nothing itself.
"""

import signal


class plain_interrupts:  # noqa: N801  (used as a function is)
    """Within the block an interrupt ends the process as it ends one in C: at once, by the signal.

    As an exception it would meet modules that are half loaded. Those of MindSpore make another
    error of it, or abort the interpreter on its way out.
    """

    def __enter__(self) -> None:
        """Take the usual handler away, if it is there and this is the main thread."""
        self._before = signal.getsignal(signal.SIGINT)
        self._is_usual = self._before is signal.default_int_handler
        if self._is_usual:
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            except ValueError:  # in another thread, which no interrupt meets
                self._is_usual = False

    def __exit__(self, *unused: object) -> None:
        """Put it back."""
        if self._is_usual:
            signal.signal(signal.SIGINT, self._before)
