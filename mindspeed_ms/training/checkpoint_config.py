# SPDX-License-Identifier: Apache-2.0
"""A model's configuration from what its checkpoint says, and Megatron's arguments for it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.models import ModelSpec, gpt_spec
from mindspeed_ms.models.families.registry import family_of_type
from mindspeed_ms.models.identity import identity
from mindspeed_ms.training.flags import ROWS, Field, Refused
from mindspeed_ms.training.from_args import (
    defaults_of_flags,
    sections_from_args,
    values_of_sections,
)
from mindspeed_ms.training.yaml_styles.build import clean_sections
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_dict

MODEL_SECTIONS = ("model_config", "moe_config")
_MODEL_REFUSALS = ("refused: other layers", "refused: positions")
"""Groups of flags whose options change what a model computes."""

_TYPES = frozenset({"bf16", "fp16", "params_dtype"})


def model_dests() -> frozenset[str]:
    """Attributes of Megatron's arguments that say something about the model."""
    return _TYPES | {
        row.dest
        for row in ROWS
        if isinstance(row.state, Field)
        and any(path.partition(".")[0] in MODEL_SECTIONS for path in row.state.paths)
    }


def config_of(common: Mapping[str, Any]) -> AllConfig:
    """The configuration of the model in a checkpoint.

    Args:
        common: ``Catalog.common``.

    Raises:
        ValueError: the checkpoint does not describe its model, or a model that cannot be held here.
    """
    if "config" in common:
        return init_configs_from_dict(common["config"])
    if "huggingface" in common:
        theirs = common["huggingface"]
        absent = common.get("huggingface_absent", ())
        present = {key: value for key, value in theirs.items() if key not in absent}
        return family_of_type(theirs.get("model_type")).config(present)
    if "num_layers" in (common.get("megatron_args") or {}):
        return config_of_megatron(common["megatron_args"])
    raise ValueError(
        "the checkpoint does not describe its model; name a file that does with --model-config (a "
        "configuration in YAML, or Hugging Face's config.json)"
    )


def is_origin(theirs: Mapping[str, Any], config: AllConfig) -> bool:
    """Whether a ``config.json`` describes a model that computes the same as a configuration's."""
    try:
        family = family_of_type(theirs.get("model_type"))
        absent = family.absent(theirs, ())
        every = [family.config(theirs)]
        if absent:
            every.append(family.config({k: v for k, v in theirs.items() if k not in absent}))
    except ValueError:
        return False
    return identity(config) in [identity(found) for found in every]


def spec_of(common: Mapping[str, Any]) -> ModelSpec:
    """The model in a checkpoint; see ``config_of``."""
    return gpt_spec(config_of(common).model_config)


def config_of_megatron(args: Mapping[str, Any]) -> AllConfig:
    """The configuration of a model from Megatron's saved arguments.

    Raises:
        ValueError: an argument asks for a model that cannot be held here.
    """
    for row in ROWS:
        value, state = args.get(row.dest), row.state
        if not isinstance(state, Refused) or value in (None, False, row.default):
            continue
        if row.group in _MODEL_REFUSALS and row.refusal(value) is not None:
            raise ValueError(
                f"the checkpoint was trained with {row.names[0]} {value}: {state.advice}"
            )
    dests = model_dests()
    values = {dest: value for dest, value in defaults_of_flags().items() if dest in dests}
    values |= {dest: value for dest, value in args.items() if dest in dests}
    if values.get("multi_latent_attention"):
        values["group_query_attention"] = False  # Megatron does not read it then
    if not values.get("padded_vocab_size"):
        unit = int(args.get("make_vocab_size_divisible_by") or 128)
        unit *= int(args.get("tensor_model_parallel_size") or 1)
        values["padded_vocab_size"] = -(-int(args.get("vocab_size") or unit) // unit) * unit
    sections = sections_from_args(Namespace(**values))
    return assemble({name: sections[name] for name in MODEL_SECTIONS if name in sections})


def megatron_args(config: AllConfig) -> dict[str, Any]:
    """Megatron's arguments that describe a model.

    Raises:
        ValueError: Megatron has no arguments for some of it; the message names them.
    """
    dests = model_dests()
    values = values_of_sections(clean_sections(config.to_dict()))
    args = {dest: value for dest, value in values.items() if dest in dests}
    wanted = identity(config)
    args["add_bias_linear"] = wanted["model_config.mlp_has_bias"]
    args["add_qkv_bias"] = wanted["model_config.qkv_has_bias"]
    args["add_dense_bias"] = wanted["model_config.out_proj_has_bias"]
    args["encoder_num_layers"] = args["num_layers"]
    args["encoder_seq_length"] = args["seq_length"]
    args["layernorm_epsilon"] = args["norm_epsilon"]
    found = identity(config_of_megatron(args))
    lost = [
        f"{name} ({found.get(name)!r} there, {value!r} here)"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if lost:
        raise ValueError(
            f"Megatron's arguments cannot say {'; '.join(lost[:4])}: convert to another format"
        )
    return args
