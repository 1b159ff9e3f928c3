# SPDX-License-Identifier: Apache-2.0
"""A model's folder to the hub, by ``huggingface_hub`` (extra ``hub``)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.toolkit.given import shown
from mindspeed_ms.toolkit.hub import checked_name

_REPOSITORY = re.compile(r"(?:[\w.-]+/)?[\w.-]{1,96}", re.ASCII)


def repository(name: object) -> str:
    """The name of a repository, as the hub allows them.

    Raises:
        ValueError: the hub would refuse it.

    >>> repository("owner/name-7b")
    'owner/name-7b'
    """
    text = name if isinstance(name, str) else ""
    is_fine = _REPOSITORY.fullmatch(text) and not re.search(r"--|\.\.|\.git$", text)
    if not is_fine or any(part[0] in "-." or part[-1] in "-." for part in text.split("/")):
        raise ValueError(
            f"{shown(name)} is no name of a repository; write OWNER/NAME of letters, digits, - _ "
            "and ., none of - . at an end or twice"
        )
    return text


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str = "Upload model",
    revision: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a folder; the repository is made when it is not there.

    Args:
        folder: what ``save_pretrained`` or a conversion has written.
        repo_id: ``owner/name``.
        token: None for the one of ``huggingface-cli login`` or ``HF_TOKEN``.
        private: of a repository that is made.
        commit_message: of the commit.
        revision: branch; None for the main one.
        endpoint: address of the hub; None for ``HF_ENDPOINT``.

    Returns:
        Address of the commit.

    Raises:
        ImportError: ``huggingface_hub`` is not installed.
        ValueError: a folder without a model, or a name that the hub does not allow.
        OSError: the hub cannot be reached, or refuses.
    """
    repository(repo_id)
    path = Path(checked_name(folder))
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json; write a model there first")
    library = optional_libraries.load("huggingface_hub", "push_to_hub", "hub")
    api = library.HfApi(endpoint=endpoint, token=token)
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=made,
            folder_path=path,
            commit_message=commit_message,
            revision=revision,
            ignore_patterns=["*.partial", ".*"],
        )
    except OSError:  # refusals of the hub are
        raise
    except Exception as error:
        if not _is_of_the_wire(error):
            raise
        raise OSError(
            f"the hub cannot be reached: {error}; {path} is complete, upload it later"
        ) from error
    return str(commit.commit_url)


def _is_of_the_wire(error: Exception) -> bool:
    """Whether the HTTP library below says so: which one it is, is the hub library's affair."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
