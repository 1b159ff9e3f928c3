"""Megatron's own YAML layout (``--yaml-cfg``): argument names as keys, in nested blocks or not.

Blocks such as ``language_model`` and ``model_parallel`` only group keys. Keys that are names of
Megatron's classes instead of its arguments are renamed; what YAML cannot express there (functions,
timers) must be empty.

Source: Megatron-LM core 0.8 ``yaml_arguments.py`` and its example file (names).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.section import suggestion
from mindspeed_ms.training.flags import ROWS, Flag, Refused
from mindspeed_ms.training.yaml_styles.yaml_files import find_yaml, read_yaml

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "num_moe_experts": "num_experts",
        "layernorm_epsilon": "norm_epsilon",
        "layernorm_zero_centered_gamma": "apply_layernorm_1p",
        "bias_activation_fusion": "bias_gelu_fusion",
        "use_mcore_models": "deprecated_use_mcore_models",
    }
)
"""Key of the file -> argument."""

ACTIVATIONS: Mapping[str, Mapping[str, bool]] = MappingProxyType(
    {
        "swiglu": {"swiglu": True},
        "squaredrelu": {"squared_relu": True},
        "squared_relu": {"squared_relu": True},
        "gelu": {},
    }
)
"""Value of ``activation_func`` -> arguments."""

WITHOUT_EFFECT = frozenset(
    {
        "gated_linear_unit",
        "persist_layer_norm",
        "memory_efficient_layer_norm",
        "tp_comm_atomic_ag",
        "tp_comm_atomic_rs",
        "batch_p2p_comm",
        "batch_p2p_sync",
        "deallocate_pipeline_outputs",
        "cpu_offloading",
        "cpu_offloading_weights",
        "cpu_offloading_activations",
        "_cpu_offloading_context",
        "num_microbatches_with_partial_activation_checkpoints",
        "enable_autocast",
        "autocast_dtype",
        "pipeline_dtype",
        "init_method",
        "output_layer_init_method",
        "timers",
        "grad_scale_func",
        "finalize_model_grads_func",
        "no_sync_func",
        "grad_sync_func",
        "param_sync_func",
    }
)
"""Keys of Megatron's classes that no argument sets; what they choose is decided elsewhere here."""


def load_megatron_yaml(name: str | Path) -> dict[str, Any]:
    """Return argument -> value as a file in Megatron's layout states them. Empty keys are left out.

    Raises:
        ValueError: an unreadable file, an unknown key, or a key that asks for what does not exist.
    """
    path = find_yaml(name)
    rows = {row.dest: row for row in reversed(ROWS)}
    values: dict[str, Any] = {}
    for key, given in _leaves(read_yaml(path)):
        if given is None or key in WITHOUT_EFFECT:
            continue
        if key == "activation_func":
            values.update(_activation(path, given))
            continue
        dest = RENAMED.get(key, key)
        if dest not in rows:
            raise ValueError(f"{path}: unknown key {key!r}{suggestion(key, rows)}")
        if given != rows[dest].default:
            _check(path, key, given, rows[dest])
        values[dest] = given
    if not values.get("group_query_attention"):
        values.pop("num_query_groups", None)
    return values


def _leaves(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield str(key), value


def _activation(path: Path, given: Any) -> Mapping[str, bool]:
    if given not in ACTIVATIONS:
        raise ValueError(
            f"{path}: activation_func is {given!r}, but must be {', '.join(ACTIVATIONS)}; "
            "correct it"
        )
    return ACTIVATIONS[given]


def _check(path: Path, key: str, given: Any, row: Flag) -> None:
    refusal = row.refusal(given)
    if refusal is not None and given not in (False, ""):
        raise ValueError(f"{path}: {key} {given!r} is refused: {refusal.advice}")
    if row.choices and not isinstance(row.state, Refused) and given not in row.choices:
        choices = ", ".join(map(str, row.choices))
        raise ValueError(f"{path}: {key} is {given!r}, but must be one of {choices}")


def flags_of(arguments: Mapping[str, Any]) -> list[str]:
    """Return the flags that would set these arguments, for the report of what has no effect."""
    rows = {row.dest: row for row in reversed(ROWS)}
    return [rows[dest].names[0] for dest, given in arguments.items() if given != rows[dest].default]
