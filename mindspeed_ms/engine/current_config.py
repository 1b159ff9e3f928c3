"""The configuration of this run, for entry points whose public signatures have no room for it."""

from __future__ import annotations

from mindspeed_ms.config import AllConfig


class _Run:
    """Holder of what the entry points share."""

    def __init__(self) -> None:
        self.all_config: AllConfig | None = None


_RUN = _Run()


def set_all_config(all_config: AllConfig | None) -> None:
    """Make a configuration the one of this run; None forgets it."""
    _RUN.all_config = all_config


def get_all_config() -> AllConfig:
    """The configuration of this run.

    Raises:
        RuntimeError: there is none yet.
    """
    if _RUN.all_config is None:
        raise RuntimeError(
            "no configuration yet; call initialize_megatron() and init_configs_from_args(), or "
            "pass all_config to pretrain()"
        )
    return _RUN.all_config
