# SPDX-License-Identifier: Apache-2.0
"""Token files in object storage: ``s3://bucket/prefix``, ``obs://`` and what else fsspec reads.

The index is copied once to a local folder and mapped there; tokens are read by ranges, one request
a sample. Keys, regions and endpoints are fsspec's and its stores' own (for S3 and OBS the
environment or the files of the AWS clients, ``AWS_ENDPOINT_URL`` among them).
"""

from __future__ import annotations

import importlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mindspeed_ms.files.regular_file import read_json
from mindspeed_ms.files.whole import appears_whole, write_text

logger = logging.getLogger(__name__)

TRIES = 4
"""Of a request, with a pause before each but the first."""
FIRST_PAUSE = 0.5
"""Seconds; each further one is twice as long."""
_MESSAGE = 300
"""Letters of a store's own message that are repeated."""

Answer = TypeVar("Answer")


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


class RemoteFile:
    """A file of object storage, of which ranges are read.

    Args:
        url: its address, ``protocol://bucket/key``.

    Raises:
        FileNotFoundError: there is none.
        OSError: the store does not answer, or not in a way that helps.
        ValueError: the packages that read such a store are not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._store, self._path = _opened(url)
        facts = self._asked(lambda: self._store.info(self._path))
        self.size = int(facts["size"])
        self.version = str(facts.get("ETag") or facts.get("mtime") or facts.get("LastModified"))
        """What tells it from another file that had its name before."""

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on.

        Raises:
            OSError: they cannot be had, now or any more.
        """
        if not size:
            return b""
        data = self._asked(lambda: self._store.cat_file(self._path, start=start, end=start + size))
        if len(data) != size:
            raise OSError(
                f"{self.url} gave {len(data)} of {size} bytes from {start}; it was replaced by a "
                "shorter file: copy it again, then resume from the newest checkpoint"
            )
        return data

    def copy_to(self, path: Path) -> None:
        """Copy all of it to a local file, which appears when it is complete.

        Raises:
            OSError: it cannot be read or written.
        """
        with appears_whole(path) as unfinished:
            self._asked(lambda: self._store.get_file(self._path, str(unfinished)))
            if unfinished.stat().st_size != self.size:
                raise OSError(f"{self.url} came incomplete; start again")

    def _asked(self, request: Callable[[], Answer]) -> Answer:
        """Answer of a request that is repeated while the store does not give one."""
        for number in range(TRIES):
            try:
                return request()
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"{self.url} not found; a dataset is a pair of a .bin and an .idx file: check "
                    "the path"
                ) from None
            except PermissionError as error:
                raise OSError(
                    f"{self.url} may not be read ({_short(error)}); give the store's keys, for S3 "
                    "and OBS AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                ) from None
            except Exception as error:  # noqa: BLE001  (every store has errors of its own)
                if number == TRIES - 1:
                    raise OSError(
                        f"{self.url} cannot be read ({_short(error)}), {TRIES} times; check "
                        "network, endpoint (AWS_ENDPOINT_URL) and keys"
                    ) from None
                time.sleep(FIRST_PAUSE * 2**number)
        raise AssertionError("the last try returns or raises")


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:_MESSAGE]


def _opened(url: str) -> tuple[Any, str]:
    """(file system, path in it) of a URL."""
    protocol, _, rest = url.partition("://")
    try:  # importing it adds loggers, which this package must not do for others
        fsspec = importlib.import_module("fsspec")
    except ImportError:
        raise ValueError(
            f"{url}: paths of object storage need fsspec; pip install "
            "'mindspeed_ms[object-storage]', or mount the bucket"
        ) from None
    # Huawei Cloud's store speaks S3's protocol at an endpoint of its own.
    if protocol == "obs" and "obs" not in fsspec.available_protocols():
        protocol = "s3"
    try:
        return fsspec.filesystem(protocol), rest
    except ImportError as error:
        raise ValueError(f"{url}: {_short(error)}; pip install it, or mount the bucket") from None
    except ValueError:
        raise ValueError(
            f"{url} names a kind of store that fsspec does not know; known are "
            f"{', '.join(sorted(fsspec.available_protocols()))}"
        ) from None


def local_copy(url: str, folder: str | None) -> str:
    """Path of a local copy of a file, which is made when there is none of the file as it is now.

    Args:
        url: address of the file.
        folder: where copies are (``--object-storage-cache-path``).

    Raises:
        ValueError: there is no folder.
        OSError: the file cannot be read, or the folder not be written.
    """
    if folder is None:
        raise ValueError(
            f"{url} is in object storage, of which the index is kept in a local folder; give "
            "--object-storage-cache-path FOLDER"
        )
    remote = RemoteFile(url)
    protocol, _, rest = url.partition("://")
    path = Path(folder) / protocol / rest.lstrip("/")
    if ".." in Path(rest).parts:
        raise ValueError(f"{url} names a folder above its bucket; give the plain path")
    note = path.with_name(path.name + ".source.json")
    wanted = {"url": url, "size": remote.size, "version": remote.version}
    if path.is_file() and path.stat().st_size == remote.size and _noted(note) == wanted:
        return str(path)
    remote.copy_to(path)
    write_text(note, json.dumps(wanted))
    logger.info("copied %s (%d bytes) to %s", url, remote.size, path)
    return str(path)


def _noted(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
