# SPDX-License-Identifier: Apache-2.0
"""Recomputation.

Source: MindFormers' ``recompute_config`` (names, and that select_recompute wins over recompute).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_ms.toolkit.mapping.rows import Joint, Mapped, Table, apply, checked

CONFIG: Table = {
    "recompute": Joint(),
    "select_recompute": Joint(),
    "select_comm_recompute": Joint(),
    "parallel_optimizer_comm_recompute": Joint(),
    "mp_comm_recompute": Joint(),
    "recompute_slice_activation": Joint(),
}
"""Keys of the block ``recompute_config``, and of ``set_recompute_config``."""

FULL = {
    "model_config.recompute_granularity": "full",
    "model_config.recompute_method": "uniform",
    "model_config.recompute_num_layers": 1,
}


def map_recompute(config: Mapping[str, Any], *, sequence_parallel: bool = False) -> Mapped:
    """Translate ``recompute_config``.

    ``recompute`` and ``select_recompute`` are switches for all layers, or numbers of layers, one
    for each pipeline stage.

    Args:
        config: keys of ``recompute_config``.
        sequence_parallel: whether model-parallel ranks cut activations along the sequence.

    Raises:
        ValueError: an unknown key, or a value of another type.
    """
    mapped = Mapped()
    given = {
        key: _switch_or_layers(f"recompute_config.{key}", value)
        for key, value in apply(config, CONFIG, "recompute_config").joint.items()
    }
    full, selected = given.get("recompute", False), given.get("select_recompute", False)
    if selected is True:
        if full is not False:
            mapped.lines.append("recompute and select_recompute are both on: select_recompute wins")
        mapped.put({"model_config.recompute_granularity": "selective"})
    elif full is True and selected is False:
        mapped.put(FULL)
    else:
        for target, value in (("recompute", full), ("select_recompute", selected)):
            if value is not False:
                mapped.put({f"parallel_config.{target}": value})
    if "select_comm_recompute" in given:
        mapped.put({"parallel_config.select_comm_recompute": given["select_comm_recompute"]})
    elif given.get("mp_comm_recompute") is False:
        if sequence_parallel:
            mapped.put({"parallel_config.select_comm_recompute": False})
        else:
            mapped.lines.append(
                "recompute_config.mp_comm_recompute False has no effect without use_seq_parallel: "
                "there is nothing gathered to keep"
            )
    if given.get("parallel_optimizer_comm_recompute"):
        mapped.lines.append(
            "recompute_config.parallel_optimizer_comm_recompute has no effect: whole weights are "
            "gathered once a step, not in every layer"
        )
    if given.get("recompute_slice_activation") and not sequence_parallel:
        mapped.lines.append(
            "recompute_config.recompute_slice_activation has no effect: use_seq_parallel slices "
            "what is kept"
        )
    return mapped


def _switch_or_layers(path: str, value: object) -> Any:  # noqa: ANN401
    """A switch, or layers per pipeline stage; the other keys are switches."""
    name = path.rpartition(".")[2]
    if name in ("recompute", "select_recompute", "select_comm_recompute"):
        return checked(path, f"parallel_config.{name}", value)
    if not isinstance(value, bool):
        raise ValueError(f"{path} is {value!r}, but must be true or false")
    return value
