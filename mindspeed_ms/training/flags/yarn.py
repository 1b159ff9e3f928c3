# SPDX-License-Identifier: Apache-2.0
"""Yarn of plain rope by Megatron's flags, which multi-latent attention has, too.

Source: Megatron-LM ``--position-embedding-type yarn`` (which flags, and the growth of the tables).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms.models.rotation import yarn_growth
from mindspeed_ms.training.flags.row import UNSET


def _is_asked(given: Any) -> bool:
    return given.position_embedding_type == "yarn" and not given.multi_latent_attention


def _is_yarn(given: Any) -> bool:
    """Whether plain rope is stretched by yarn: Megatron's flags for it are read."""
    is_stretched = given.rope_scaling_type == "yarn" and not given.multi_latent_attention
    return _is_asked(given) or is_stretched


def _rope_type(stated: Any, given: Any) -> Any:
    is_plain = stated in (UNSET, None, "default")
    if _is_asked(given):
        if not is_plain and stated != "yarn":
            raise ValueError(
                f"--position-embedding-type yarn and --rope-scaling-type {stated} stretch "
                "positions in two ways; keep one of them"
            )
        return "yarn"
    if is_plain and given.yarn_scaling_factor not in (None, 1.0):
        raise ValueError(
            f"--yarn-scaling-factor {given.yarn_scaling_factor} is about positions stretched by "
            "yarn; add --rope-scaling-type yarn, or leave it out"
        )
    return stated


def _agreed(given: Any, **usual: float | None) -> Any:
    """What the flags say of one number of yarn; None if none says anything but the usual.

    Args:
        given: all arguments.
        usual: name of each flag -> its default.

    Raises:
        ValueError: two of them differ.
    """
    said_of = {name: getattr(given, name) for name in usual}
    told = {name: value for name, value in said_of.items() if value not in (None, usual[name])}
    if len(set(told.values())) > 1:
        said = " and ".join(f"--{name.replace('_', '-')} {told[name]}" for name in told)
        raise ValueError(f"{said} say one thing of yarn; keep one of them")
    return next(iter(told.values()), None)


def _yarn_factor(stated: Any, given: Any) -> Any:
    own = {} if given.multi_latent_attention else {"rotary_scaling_factor": 1.0}
    factor = None
    if _is_asked(given) or given.rope_scaling_type == "yarn":
        factor = _agreed(given, yarn_scaling_factor=1.0, rope_scaling_factor=8.0, **own)
    if _is_asked(given):
        return factor or 1.0
    if given.rope_scaling_type in (None, "default"):
        return UNSET  # nothing reads it
    return factor or stated


def _of_two(name: str, usual: float | None) -> Callable[[Any, Any], Any]:
    """The rule of what Megatron and MindSpeed have a flag each for."""

    def rule(stated: Any, given: Any) -> Any:
        if not _is_yarn(given):
            return stated
        names = f"rope_scaling_{name}", f"yarn_{name}"
        return _agreed(given, **dict.fromkeys(names, usual)) or stated

    return rule


def _yarn_attention_factor(stated: Any, given: Any) -> Any:
    """Megatron's ratio of two growths, also where one of the weights is 0."""
    weights = given.mscale, given.mscale_all_dim
    if stated not in (UNSET, None) or not _is_asked(given) or weights in ((1.0, 0.0), (None, None)):
        return stated
    factor = _yarn_factor(UNSET, given)
    return yarn_growth(factor, weights[0] or 0.0) / yarn_growth(factor, weights[1] or 0.0)


YARN_RULES: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        f"model_config.rope_scaling.{name}": rule
        for name, rule in {
            "rope_type": _rope_type,
            "factor": _yarn_factor,
            "original_max_position_embeddings": _of_two("original_max_position_embeddings", None),
            "beta_fast": _of_two("beta_fast", 32.0),
            "beta_slow": _of_two("beta_slow", 1.0),
            "attention_factor": _yarn_attention_factor,
        }.items()
    }
)
"""Field -> its rule, of what the rows state and of all arguments; see ``flag_rules``."""
