# SPDX-License-Identifier: Apache-2.0
"""The configuration of the active run, for functions whose signatures have no room for it."""

from __future__ import annotations

from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import run_state


def set_all_config(all_config: AllConfig | None) -> None:
    """Make a configuration the one of the active run; None forgets it."""
    if all_config is None:
        run_state.current().remove(AllConfig)
    else:
        run_state.current().put(all_config)


def get_all_config() -> AllConfig:
    """The configuration of the active run.

    Raises:
        RuntimeError: there is none yet.
    """
    config = run_state.current().find(AllConfig)
    if config is None:
        raise RuntimeError(
            "no configuration yet; call initialize_megatron() and init_configs_from_args(), or "
            "pass all_config to pretrain()"
        )
    return config
