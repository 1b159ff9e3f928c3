# SPDX-License-Identifier: Apache-2.0
"""Reading ahead: while one tensor is written, the next one is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

_END: Any = object()


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each made in a thread while the one before is used.

    At most two exist at a time. An error in making an item is raised where the item is due.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(next, source, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, source, _END)
            yield item
