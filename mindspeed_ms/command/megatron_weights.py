# SPDX-License-Identifier: Apache-2.0
"""The model of a run that begins with weights of Megatron's, for comparisons with it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mindspeed_ms.command.train import model_provider
from mindspeed_ms.files.regular_file import require_regular
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.legacy.model.megatron_names import load_megatron_parameters


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Arrays by Megatron's names.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no ``.npz`` of arrays.
    """
    try:
        require_regular(path)
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                return dict(found)
    except (ValueError, EOFError, zipfile.BadZipFile):
        pass  # told below, as one array is
    raise ValueError(f"{path} is no .npz of arrays by Megatron's names; give another file")


def provider_from(path: Path | None) -> Callable[..., GPTModel]:
    """What makes this rank's part of the configured model, with the weights of a file.

    Args:
        path: the file; None: the model keeps the weights that it draws.

    Raises:
        OSError, ValueError: see ``read_weights``.
    """
    if path is None:
        return model_provider
    weights = read_weights(path)

    def provider(pre_process: bool = True, post_process: bool = True) -> GPTModel:
        model = model_provider(pre_process, post_process)
        load_megatron_parameters(model, weights)
        return model

    return provider
