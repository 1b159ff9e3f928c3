# SPDX-License-Identifier: Apache-2.0
"""The engine's model of a configuration in a layout, with random weights or a checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms

from mindspeed_ms.backend import autograd, comm
from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import Sections, assemble
from mindspeed_ms.config.optimizer_config import STATE_NAMES
from mindspeed_ms.core import parallel_state, run_state
from mindspeed_ms.core.dist_checkpointing.live_state import LiveTensor, parameters_of
from mindspeed_ms.core.dist_checkpointing.loader import LoadOptions, load_tensors
from mindspeed_ms.core.peft.magnitude import set_magnitudes
from mindspeed_ms.core.run_state import RunState
from mindspeed_ms.core.tensor_parallel.random import counting_draws
from mindspeed_ms.engine.adapters import open_adapters, without_adapters
from mindspeed_ms.engine.model_chunks import build_model_chunks
from mindspeed_ms.engine.parallel_setup import DEFAULT_SEED, seed_model, set_parallel_context
from mindspeed_ms.formats import names, peft
from mindspeed_ms.formats.find import Found, open_checkpoint
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.adapter import is_adapter_name
from mindspeed_ms.models.identity import identity
from mindspeed_ms.toolkit.messages import unknown_argument
from mindspeed_ms.toolkit.models.configuration import PretrainedConfig
from mindspeed_ms.training.checkpoint_config import config_of, spec_of

LAYOUT_WORDS: Mapping[str, str] = {
    "tensor_model_parallel_size": "tensor_model_parallel_size",
    "tensor_parallel": "tensor_model_parallel_size",
    "pipeline_model_parallel_size": "pipeline_model_parallel_size",
    "pipeline_parallel": "pipeline_model_parallel_size",
    "expert_model_parallel_size": "expert_model_parallel_size",
    "expert_parallel": "expert_model_parallel_size",
    "sequence_parallel": "sequence_parallel",
}
"""Keyword -> field of ``parallel_config``."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How ranks share a model."""

    fields: Mapping[str, Any]
    """Of ``parallel_config``."""

    @classmethod
    def of(cls, words: Mapping[str, Any], caller: str) -> Layout:
        """From keywords.

        Raises:
            TypeError: an unknown one.
        """
        for word in words:
            if word not in LAYOUT_WORDS:
                raise TypeError(unknown_argument(caller, word, LAYOUT_WORDS))
        return cls({LAYOUT_WORDS[word]: value for word, value in words.items()})


@dataclass(frozen=True, slots=True)
class Built:
    """A model of this rank."""

    chunks: list[GPTModel]
    state: RunState
    config: AllConfig
    bytes_read: int
    """Of the checkpoint, by this rank."""


def build(
    config: PretrainedConfig,
    layout: Layout,
    dtype: str | None,
    seed: int | None,
    weights: Found | None,
    adapters: Path | None = None,
    *,
    is_filled: bool = False,
) -> Built:
    """Build the part of a model that this rank holds.

    Args:
        config: the model.
        layout: how ranks share it; inside a run, and where groups exist, those decide.
        dtype: type of weights and of computation; None for the configuration's.
        seed: of random weights.
        weights: the checkpoint to load; None for random weights.
        adapters: folder of PEFT's files, for a configuration with adapters.
        is_filled: the caller puts all weights in; without a checkpoint none are drawn, either.

    Raises:
        ValueError: the layout does not fit, or the checkpoint does not.

    Parallelism: collective over the world.
    """
    is_inside = parallel_state.model_parallel_is_initialized()
    state = run_state.current() if is_inside else RunState()
    with run_state.activated(state), autograd.in_dynamic_graph():
        comm.init_process_group()
        engine = _configuration(config, layout, dtype, is_inside)
        if weights is not None:
            engine = _as_stored(engine, weights)
        if not is_inside:
            engine.validate(comm.get_world_size())
            set_parallel_context(engine.parallel_config)
            _seed(seed)
        is_filled = is_filled or weights is not None
        with counting_draws() if is_filled else nullcontext():
            chunks = build_model_chunks(_provider(engine), engine)
        for chunk in chunks:
            for name, param in chunk.parameters_and_names():
                param.name = name
        bytes_read = 0 if weights is None else _load(chunks, engine, weights)
        if adapters is not None:
            _load_adapters(chunks, engine, adapters)
        elif weights is not None:  # files of adapters hold the lengths of rows
            for chunk in chunks:
                set_magnitudes(chunk)
    return Built(chunks, state, engine, bytes_read)


def _provider(engine: AllConfig) -> Any:
    return lambda pre_process, post_process: GPTModel(
        engine.model_config, pre_process=pre_process, post_process=post_process
    )


def _configuration(
    config: PretrainedConfig, layout: Layout, dtype: str | None, is_inside: bool
) -> AllConfig:
    run_config = run_state.current().find(AllConfig) if is_inside else None
    if run_config is None:
        fields = dict(layout.fields)
        if is_inside:
            fields = _present_layout() | fields
        has_experts = config.all_config().moe_config.is_moe
        if has_experts and (fields.get("tensor_model_parallel_size") or 1) > 1:
            fields.setdefault("sequence_parallel", True)  # experts on tensor ranks need it
        return config.all_config({"parallel_config": fields}, dtype)
    own = identity(config.all_config())
    other = identity(run_config)
    different = [name for name, value in own.items() if other.get(name) != value]
    if different:
        name = different[0]
        raise ValueError(
            f"the run's configuration describes another model: {name} is {other.get(name)!r} there "
            f"and {own[name]!r} here; they differ in {len(different)} values: "
            "make it with model.config.all_config(...)"
        )
    rows = config.vocab_size
    return replace_vocabulary(run_config, rows)


def replace_vocabulary(config: AllConfig, rows: int) -> AllConfig:
    """The configuration with the true number of tokens, if it has none."""
    if config.dataset_config.vocab_size is not None:
        return config
    sections: Sections = config.to_dict()
    sections["dataset_config"] = {**sections["dataset_config"], "vocab_size": rows}
    return assemble(sections, config.model_type)  # other sections point to the one that changes


def _present_layout() -> dict[str, Any]:
    """The layout of the groups that exist."""
    return {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
        "context_parallel_size": parallel_state.get_context_parallel_world_size(),
    }


def _seed(seed: int | None) -> None:
    """Seed initial weights and dropout; generators of the process are left alone."""
    base = seed if seed is not None else ms.get_seed()
    base = DEFAULT_SEED if base is None else base
    seed_model(base, base)


def lacks_further_layers(engine: AllConfig, weights: Found) -> bool:
    """Whether a model has layers for further tokens, and its weights have none.

    ``transformers`` keeps their number in ``config.json``, and leaves the layers out.
    """
    if engine.model_config.mtp_num_layers is None or weights.kind != "huggingface":
        return False
    stored = config_of(open_checkpoint(weights, spec_of).common)
    return stored.model_config.mtp_num_layers is None


def _as_stored(engine: AllConfig, weights: Found) -> AllConfig:
    """The configuration without layers for further tokens that the weights do not have."""
    if not lacks_further_layers(engine, weights):
        return engine
    sections: Sections = engine.to_dict()
    sections["model_config"]["mtp_num_layers"] = None
    return assemble(sections)


def _load(chunks: list[GPTModel], engine: AllConfig, weights: Found) -> int:
    """Fill the chunks; return the bytes that were read."""
    base = without_adapters(engine.model_config)
    catalog = open_checkpoint(weights, lambda common: gpt_spec(base))
    is_tied = not engine.model_config.untie_embeddings_and_output_weights
    aliases = {names.HEAD: names.EMBEDDING} if is_tied or catalog.common.get("is_tied") else {}
    rows = engine.dataset_config.vocab_size
    options = LoadOptions(
        aliases=aliases,
        vocab_size=catalog.common.get("vocab_size") or rows,
        # A copy that a tied head has been given beside the embedding's.
        ignored=(names.HEAD,) if is_tied else (),
    )
    tensors = [tensor for tensor in _held(chunks) if not is_adapter_name(tensor.name)]
    _weights_only(catalog.tensors)
    return load_tensors(catalog, [], None, tensors, options).num_bytes


def _held(chunks: list[GPTModel]) -> list[LiveTensor]:
    return [tensor for chunk in chunks for tensor in parameters_of(chunk)]


def _load_adapters(chunks: list[GPTModel], engine: AllConfig, folder: Path) -> None:
    catalog = open_adapters(engine, Found(folder, peft.FORMAT, 0))
    tensors = [tensor for tensor in _held(chunks) if is_adapter_name(tensor.name)]
    load_tensors(catalog, [], None, tensors, LoadOptions())


def _weights_only(tensors: dict[str, Any]) -> None:
    """Leave the optimizer's tensors out, but not the exact values of weights in 16 bits."""
    for name in [name for name in tensors if name.partition(".")[0] in STATE_NAMES]:
        del tensors[name]
