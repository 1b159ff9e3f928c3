# SPDX-License-Identifier: Apache-2.0
"""What ends a run that had begun."""

from __future__ import annotations


class RunFailure(RuntimeError):  # noqa: N818 - it is the run that has failed, not a call
    """The run cannot go on, for a reason that its message states: a number, a disk, a peer.

    All ranks raise it in the same iteration, with the same message.
    """
