# SPDX-License-Identifier: Apache-2.0
"""What the processes of a job know and nobody else: its secret, and how they prove it.

The secret is derived from ``MINDSPEED_MS_JOB_SECRET`` in the environment, which launchers of this
project set, or else from a key file that only the user can read, made at its first use. It is never
sent: each side of a connection shows that it can sign the random numbers of both, so what a
listener records is of no use in another connection.

    server -> magic, server number
    client -> client number, signature of both numbers as a client
    server -> signature of both numbers as a server; zeros if the client's was wrong

All three have a fixed length. Of an unproven peer nothing is interpreted.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from mindspeed_ms.backend import env

VARIABLE = "MINDSPEED_MS_JOB_SECRET"
MAGIC = b"mindspeed_ms 2\n"
NUMBER_BYTES = 32
PROOF_BYTES = NUMBER_BYTES + 32
"""What the client sends: its number and its signature."""
REFUSED = bytes(32)
"""The server's answer to a wrong signature."""
SHORTEST_SECRET = 16
_KEY_BYTES = 32


def job_secret(port: int) -> bytes:
    """The secret of the job that is served on a port.

    Raises:
        RuntimeError: the variable's value is too short to be a secret, or there is neither the
            variable nor a place for a private key file.
    """
    given = env.get(VARIABLE)
    if given is not None and len(given) < SHORTEST_SECRET:
        raise RuntimeError(
            f"{VARIABLE} has {len(given)} characters, a secret needs at least {SHORTEST_SECRET}; "
            f"e.g. export {VARIABLE}=$(openssl rand -hex 32)"
        )
    key = _user_key() if given is None else given.encode()
    return hmac.digest(key, b"job on port %d" % port, "sha256")


def new_secret() -> str:
    """A value for the variable that nobody can guess."""
    return secrets.token_hex(_KEY_BYTES)


def new_number() -> bytes:
    """A random number that is used once."""
    return secrets.token_bytes(NUMBER_BYTES)


def client_proof(secret: bytes, server_number: bytes, client_number: bytes) -> bytes:
    """The bytes with which a client answers the server's number."""
    return client_number + _signature(secret, b"client", server_number, client_number)


def check_client(secret: bytes, server_number: bytes, proof: bytes) -> bytes | None:
    """The server's answer to a proof; None if the client does not know the secret."""
    client_number, signature = proof[:NUMBER_BYTES], proof[NUMBER_BYTES:]
    right = _signature(secret, b"client", server_number, client_number)
    if not hmac.compare_digest(signature, right):
        return None
    return _signature(secret, b"server", server_number, client_number)


def check_server(secret: bytes, server_number: bytes, client_number: bytes, answer: bytes) -> bool:
    """Whether the peer that gave this answer knows the secret."""
    right = _signature(secret, b"server", server_number, client_number)
    return hmac.compare_digest(answer, right)


def _signature(secret: bytes, role: bytes, server_number: bytes, client_number: bytes) -> bytes:
    return hmac.new(secret, role + server_number + client_number, hashlib.sha256).digest()


def _user_key() -> bytes:
    """The key of this user, from the first place that can hold it.

    The home folder comes first: where hosts share it, they share the key.
    """
    problems = []
    for folder in _key_folders():
        try:
            return _key_in(folder)
        except (OSError, RuntimeError) as error:
            problems.append(str(error))
    raise RuntimeError(
        f"there is no private place for a key file ({'; '.join(problems)}); set {VARIABLE} to the "
        "same random text in every shell that starts a part of the job"
    )


def _key_folders() -> list[Path]:
    state = env.get("XDG_STATE_HOME")
    folders = [Path(state)] if state and Path(state).is_absolute() else []
    with contextlib.suppress(RuntimeError):  # no home folder
        folders.append(Path.home() / ".local" / "state")
    return [
        *(folder / "mindspeed_ms" for folder in folders),
        Path(tempfile.gettempdir()) / f"mindspeed_ms_{os.getuid()}",
    ]


def _key_in(folder: Path) -> bytes:
    """Read the key in a folder; make it first if there is none.

    Raises:
        OSError: the folder cannot be made, or not be written.
        RuntimeError: others could have read or replaced the key.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_private(folder, folder.lstat(), stat.S_ISDIR)
    path = folder / "job_key"
    if not path.exists():
        _make_key(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
        _require_private(path, os.fstat(descriptor), stat.S_ISREG)
        key = file.read(2 * _KEY_BYTES)
    if len(key) != _KEY_BYTES:
        raise RuntimeError(f"{path} holds {len(key)} bytes instead of {_KEY_BYTES}; remove it")
    return key


def _require_private(path: Path, status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    mode = status.st_mode
    if not is_kind(mode) or status.st_uid != os.getuid() or stat.S_IMODE(mode) & 0o022:
        raise RuntimeError(f"{path} belongs to, or can be changed by, another user; remove it")
    if stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o077:
        raise RuntimeError(f"{path} can be read by others; remove it")


def _make_key(path: Path) -> None:
    """Write a new key, unless another process of the user is quicker."""
    descriptor, name = tempfile.mkstemp(prefix="job_key.", dir=path.parent)  # readable by us alone
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)  # appears whole, and never replaces another one
    finally:
        os.unlink(name)
