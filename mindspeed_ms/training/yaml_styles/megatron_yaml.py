# SPDX-License-Identifier: Apache-2.0
"""Megatron's own YAML layout (``--yaml-cfg``): argument names as keys, in nested blocks or not.

Blocks such as ``language_model`` and ``model_parallel`` only group keys. Keys that are names of
Megatron's classes instead of its arguments are renamed; what YAML cannot express there (functions,
timers) must be empty.

Source: Megatron-LM core 0.8 ``yaml_arguments.py`` and its example file (names).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.all_config import SECTION_CLASSES
from mindspeed_ms.config.beside import READ_BY_SECTION, located_value
from mindspeed_ms.config.coercion import UnfitError, coerce, shown, suggestion, wrong_value
from mindspeed_ms.training.flags import ROWS, EntryPoint, Field, Flag, Refused
from mindspeed_ms.training.flags.value_types import positive, ranks
from mindspeed_ms.training.yaml_styles.guide_style import is_guide_style
from mindspeed_ms.training.yaml_styles.legacy_keys import Inert
from mindspeed_ms.training.yaml_styles.yaml_files import BASE_KEY, find_yaml, read_yaml

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "num_moe_experts": "num_experts",
        "layernorm_epsilon": "norm_epsilon",
        "layernorm_zero_centered_gamma": "apply_layernorm_1p",
        "bias_activation_fusion": "bias_gelu_fusion",
        "use_mcore_models": "deprecated_use_mcore_models",
        "use_dist_ckpt": "use_dist_ckpt_deprecated",
        "dist_ckpt_format": "dist_ckpt_format_deprecated",
        "weight_decay_incre_style": "weight_decay_incr_style",
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


_GPT_ONLY = "there is one model, one loss and one way to mask"
_FIELD = "give it in --yaml, as {}"

PREDECESSORS: Mapping[str, Inert] = MappingProxyType(
    {
        "model_customize_staged": Inert(None, "--num-layer-list cuts the model"),
        "mask_func_type": Inert(None, _GPT_ONLY),
        "loss_func_type": Inert(None, _GPT_ONLY),
        "softmax_compute_dtype": Inert(None, "every kernel takes the softmax in float32"),
        "eod_id": Inert(None, "use eos_token_id"),
        "pad_token": Inert(None, "use pad_token_id"),
        "epochs": Inert(None, "use train_iters or train_samples"),
        "data_layout": Inert(None, "activations are [sequence, batch, hidden] inside"),
        "use_post_norm": Inert((True,), _FIELD.format("model_config.use_final_norm")),
        "shuffle": Inert((False,), _FIELD.format("dataset_config.shuffle")),
    }
)
"""Keys of the predecessor's second line, which used this layout, that no argument sets."""

BLOCKS = frozenset({"language_model", "model_parallel"})
"""Names of Megatron's blocks of keys."""


def load_megatron_yaml(name: str | Path) -> dict[str, Any]:
    """Return argument -> value as a file in Megatron's layout states them. Empty keys are left out.

    Raises:
        ValueError: an unreadable file, an unknown key, or a key that asks for what does not exist.
    """
    path = find_yaml(name)
    rows = {row.dest: row for row in reversed(ROWS)}
    fields = {f"{name}.{key}" for name, keys in READ_BY_SECTION.items() for key in keys}
    read = {
        row.dest for row in ROWS if isinstance(row.state, Field) and fields & set(row.state.paths)
    }
    values: dict[str, Any] = {}
    for key, given in _leaves(read_yaml(path)):
        if given is None or key in WITHOUT_EFFECT:
            continue
        if key == "activation_func":
            values.update(_activation(path, given))
            continue
        if key in PREDECESSORS:
            PREDECESSORS[key].drop(key, given)
            continue
        dest = RENAMED.get(key, key)
        if dest not in rows:
            raise ValueError(f"{path}: unknown key {key!r}{suggestion(key, rows)}")
        if given != rows[dest].default:
            _check(path, key, given, rows[dest])
        if dest in read:
            given = located_value(given, path.parent)
        if values.get(dest, given) != given:
            raise ValueError(f"{path}: {key} is given twice, with different values; keep one")
        values[dest] = given
    if not values.get("group_query_attention"):
        values.pop("num_query_groups", None)
    return values


def is_megatron_style(name: str | Path) -> bool:
    """Tell whether a file has Megatron's layout: its keys are arguments, or blocks of them."""
    document = read_yaml(find_yaml(name))
    if BASE_KEY in document or is_guide_style(document) or set(document) & set(SECTION_CLASSES):
        return False
    known = {row.dest for row in ROWS} | RENAMED.keys() | WITHOUT_EFFECT | BLOCKS
    known |= PREDECESSORS.keys()
    return any(str(key) in known for key in document)


def _leaves(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield str(key), value


def _activation(path: Path, given: Any) -> Mapping[str, bool]:
    if not isinstance(given, str) or given not in ACTIVATIONS:
        raise ValueError(
            f"{path}: activation_func is {shown(given)}, but must be {', '.join(ACTIVATIONS)}; "
            "correct it"
        )
    return ACTIVATIONS[given]


_HINTS: Mapping[Any, Any] = MappingProxyType({int: int, float: float, str: str | int | float})
"""What a row reads on a command line -> what YAML may hold for it."""


def _check(path: Path, key: str, given: Any, row: Flag) -> None:
    name = f"{path}: {key}"
    if row.dest in ("yaml", "yaml_cfg"):
        raise ValueError(f"{name} names another file; name files on the command line")
    if isinstance(row.state, Field | EntryPoint):
        hint = bool if row.arity in ("on", "off", "toggle") else _HINTS.get(row.type)
        items = given if row.arity in ("many", "some", "three") else [given]
        for item in items if isinstance(items, list) and hint is not None else []:
            try:
                coerce(item, hint)
            except UnfitError as unfit:
                raise wrong_value(name, given, hint, unfit) from None
        if row.type in (ranks, positive):
            _read(name, given, row.type)
    refusal = row.refusal(given)
    if refusal is not None and given not in (False, ""):
        raise ValueError(f"{path}: {key} {shown(given)} is refused: {refusal.advice}")
    if row.choices and not isinstance(row.state, Refused) and given not in row.choices:
        choices = ", ".join(map(str, row.choices))
        raise ValueError(f"{path}: {key} is {shown(given)}, but must be one of {choices}")


def _read(name: str, given: Any, reader: Callable[[str], Any]) -> None:
    try:
        reader(str(given))
    except ValueError:
        raise ValueError(f"{name} is {shown(given)}, which is no {reader.__name__}") from None


def flags_of(arguments: Mapping[str, Any]) -> list[str]:
    """Return the flags that would set these arguments, for the report of what has no effect."""
    rows = {row.dest: row for row in reversed(ROWS)}
    return [rows[dest].names[0] for dest, given in arguments.items() if given != rows[dest].default]
