# SPDX-License-Identifier: Apache-2.0
"""The compiled part of this package: sums for digests.

They have a definition in Python that is used where nothing was compiled, several times slower.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

from mindspeed_ms.files.native_library import open_library

logger = logging.getLogger(__name__)


@functools.cache
def function(name: str) -> Any | None:
    """A compiled function; None where it was not built, which is said once."""
    for path in sorted(Path(__file__).parent.glob("_kernels_digest*.so")):
        try:
            return getattr(open_library(path), name)
        except (OSError, AttributeError) as error:
            logger.warning(
                "%s lacks %s (%s); checkpoints take several times as much computing: build again",
                path,
                name,
                error,
            )
    return None
