# SPDX-License-Identifier: Apache-2.0
"""How the small commands end when a signal asks them to: one line, nothing half-written.

A signal is an exception in the main thread, so that files which are being written are removed on
its way out. Where that thread is inside a library, which may last, another one does the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_SECONDS = 2.0
"""How long the main thread has to end by itself."""


class _Ended(BaseException):
    """A signal has asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def by_signals(say: Callable[[str], None], at_once: Callable[[], None]) -> Iterator[None]:
    """Within the block, end by the first signal as a shell expects it: 128 and its number.

    Signals that were ignored before stay so, as ``nohup`` wants it. More signals change nothing:
    some who end a job send each one twice.

    Args:
        say: tells the user one line.
        at_once: removes what is unfinished where the block cannot.

    Raises:
        SystemExit: a signal has come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_deaf = threading.Event()
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in before.items() if handler in usual}

    def end(number: int, frame: FrameType | None) -> None:
        if not is_deaf.is_set():
            is_deaf.set()
            raise _Ended(number)

    with _watched(say, at_once):
        try:
            for number in before:
                signal.signal(number, end)
            yield
            is_deaf.set()
        except _Ended as ended:
            say(_line(ended.number))
            raise SystemExit(128 + ended.number) from None
        finally:
            is_deaf.set()
            for number, handler in before.items():
                signal.signal(number, handler)


def _line(number: int) -> str:
    return f"ended by {signal.Signals(number).name}; nothing unfinished was left"


@contextlib.contextmanager
def _watched(say: Callable[[str], None], at_once: Callable[[], None]) -> Iterator[None]:
    """End the process when a signal has come and the block still lasts."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    is_over = threading.Event()

    def watch() -> None:
        for (number,) in iter(lambda: os.read(reading, 1), b""):
            if number in ENDING and not is_over.wait(PATIENCE_SECONDS):
                _leave(number, say, at_once)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)  # the thread reads the end
        thread.join()
        os.close(reading)


def _leave(number: int, say: Callable[[str], None], at_once: Callable[[], None]) -> NoReturn:
    with contextlib.suppress(Exception):
        at_once()
        say(_line(number))
        sys.stderr.flush()
    os._exit(128 + number)
