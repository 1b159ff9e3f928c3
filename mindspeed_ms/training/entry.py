"""How an entry point ends when the user made a mistake: one line, non-zero status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mindspeed_ms.backend import comm
from mindspeed_ms.backend.spokesman import is_told_by_another
from mindspeed_ms.training.one_line import one_line

logger = logging.getLogger(__name__)

USER_ERROR_STATUS = 2


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors about input into one line on standard error and status 2.

    Wrap what happens before the first training step; later errors are not the user's. The
    traceback appears at logging level 10 (``--logging-level 10``). Before the ranks have met, one
    of a host speaks for all.
    """
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError, OSError) as error:
        logger.debug("traceback of the error below", exc_info=True)
        if not comm.is_initialized() and is_told_by_another():
            raise SystemExit(USER_ERROR_STATUS) from None
        rank = f"[rank {comm.get_rank()}] " if comm.get_world_size() > 1 else ""
        sys.stderr.write(f"{rank}error: {one_line(str(error))}\n")
        sys.stderr.flush()
        raise SystemExit(USER_ERROR_STATUS) from None
