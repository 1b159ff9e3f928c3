# SPDX-License-Identifier: Apache-2.0
"""Parallel modes and sizes.

Source: MindSpore's ``set_auto_parallel_context`` and MindFormers' ``parallel_config`` (names).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mindspeed_ms.config.rules import nearest_multiples
from mindspeed_ms.config.section import suggestion
from mindspeed_ms.toolkit.mapping.rows import Inert, Joint, Mapped, Table, To, apply, inert


class ParallelMode(str, Enum):
    """How ranks share the work."""

    STAND_ALONE = "stand_alone"
    DATA_PARALLEL = "data_parallel"
    SEMI_AUTO_PARALLEL = "semi_auto_parallel"
    AUTO_PARALLEL = "auto_parallel"


_HYBRID = "hybrid_parallel"
_MODES_BY_NUMBER = (
    ParallelMode.DATA_PARALLEL.value,
    ParallelMode.SEMI_AUTO_PARALLEL.value,
    ParallelMode.AUTO_PARALLEL.value,
    _HYBRID,
)
_HEADING = "semi_auto_parall"
"""How the guide's heading spells it."""


@dataclass(frozen=True, slots=True)
class World:
    """The ranks there are."""

    size: int = 1
    servers: int = 1
    """Hosts, as far as a rank table tells."""


ALONE = World()


def parallel_mode(value: object) -> tuple[ParallelMode, list[str]]:
    """Read a mode by its name, in any case, or by MindFormers' number.

    Returns:
        The mode, and what the user should know, one line each.

    Raises:
        ValueError: no such mode, or the one that does not exist here.
    """
    text = str(getattr(value, "value", value)).strip().lower()
    lines = []
    if text.isdecimal() and int(text) < len(_MODES_BY_NUMBER):
        text = _MODES_BY_NUMBER[int(text)]
    if text == _HEADING:
        text = ParallelMode.SEMI_AUTO_PARALLEL.value
        lines.append(f"parallel_mode {_HEADING} means {text}")
    if text == _HYBRID:
        raise ValueError(
            f"parallel_mode {value!r}: {_HYBRID} leaves the cutting to the user's own cells, which "
            "does not exist here; use semi_auto_parallel with sizes in parallel_config"
        )
    names = [mode.value for mode in ParallelMode]
    if text not in names:
        raise ValueError(
            f"parallel_mode {value!r}: use stand_alone, data_parallel, semi_auto_parallel or "
            f"auto_parallel{suggestion(text, names)}"
        )
    return ParallelMode(text), lines


def mode_of(context: Mapping[str, Any], world: World) -> tuple[ParallelMode, list[str]]:
    """The mode of a ``parallel`` block; without one, a rank is alone and several are cut.

    Raises:
        ValueError: see ``parallel_mode``.
    """
    default = ParallelMode.STAND_ALONE if world.size == 1 else ParallelMode.SEMI_AUTO_PARALLEL
    return parallel_mode(context.get("parallel_mode", default))


_GRAPHS = "it steers how graphs are cut and compiled, and there are none"
_STRATEGY_FILES = "checkpoints are read in any layout, without strategy files"

CONTEXT: Table = {
    "parallel_mode": Joint(),
    "full_batch": Joint(),
    "enable_parallel_optimizer": Joint(),
    "gradients_mean": Joint(),
    "parallel_optimizer_config": {
        "gradient_accumulation_shard": Joint(),
        "optimizer_weight_shard_size": Joint(),
        "parallel_optimizer_threshold": Inert("all parameters are sharded"),
    },
    "device_num": Joint(),
    "pipeline_stages": Joint(),
    "enable_alltoall": Inert("tokens travel by all-to-all wherever experts are spread", (True,)),
    "loss_repeated_mean": Inert("the loss is a mean over the whole batch", (True,)),
    "dataset_strategy": Inert("full_batch says how the batch is given", ("full_batch", "")),
    "gradient_fp32_sync": To("training_config.accumulate_allreduce_grads_in_fp32"),
    **inert(
        (
            "search_mode",
            "auto_parallel_search_mode",
            "all_reduce_fusion_config",
            "comm_fusion",
            "parameter_broadcast",
            "auto_pipeline",
            "pipeline_config",
            "enable_parallel_config",
        ),
        _GRAPHS,
        "sharding_propagation",
        "recursive_programming",
        "dynamic_programming",
    ),
    **inert(
        (
            "strategy_ckpt_save_file",
            "strategy_ckpt_load_file",
            "strategy_ckpt_config",
            "group_ckpt_save_file",
        ),
        _STRATEGY_FILES,
        "./ckpt_strategy.ckpt",
    ),
}
"""Keys of the block ``parallel``, and of ``ParallelContextConfig``."""

_SIZES = ("data_parallel", "model_parallel", "pipeline_stage", "expert_parallel")
CONFIG: Table = {
    **{name: Joint() for name in _SIZES},
    "context_parallel": Joint(),
    "use_seq_parallel": Joint(),
    "seq_parallel": Joint(),
    "optimizer_shard": Joint(),
    "micro_batch_num": Joint(),
    "micro_batch_interleave_num": Joint(),
    "micro_batch_interleaved_num": Joint(),
    "vocab_emb_dp": Joint(),
    "gradient_aggregation_group": Joint(),
}
"""Keys of the block ``parallel_config``, and of ``set_parallel_config``."""


@dataclass(frozen=True, slots=True)
class ParallelSizes:
    """The values of ``parallel_config``, defaults filled in, each of its type."""

    data_parallel: int = 1
    model_parallel: int = 1
    pipeline_stage: int = 1
    expert_parallel: int = 1
    context_parallel: int = 1
    micro_batch_num: int = 1
    micro_batch_interleave_num: int = 1
    gradient_aggregation_group: int | None = None
    use_seq_parallel: bool = False
    optimizer_shard: bool = False
    vocab_emb_dp: bool = False

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step on each data-parallel rank."""
        return self.micro_batch_num * self.micro_batch_interleave_num

    @property
    def ranks(self) -> int:
        """Ranks that the sizes make up."""
        stages = self.pipeline_stage * self.context_parallel
        return self.data_parallel * self.model_parallel * stages

    def copies(self, mode: ParallelMode, world: int) -> int:
        """Copies of the model whose parts of the batch ``parallel_config`` counts.

        A layout that is searched for keeps the batch of the sizes, where these make up the ranks.
        """
        if mode is ParallelMode.SEMI_AUTO_PARALLEL or (
            mode is ParallelMode.AUTO_PARALLEL and self.ranks == world
        ):
            return self.data_parallel
        return world


_ALIASES = {
    "seq_parallel": "use_seq_parallel",
    "micro_batch_interleaved_num": "micro_batch_interleave_num",
}
_DEFAULTS = ParallelSizes()


def read_sizes(config: Mapping[str, Any]) -> ParallelSizes:
    """Check the values of ``parallel_config``.

    Raises:
        ValueError: an unknown key, a size below 1, a value of another type.
    """
    values: dict[str, Any] = {}
    for key, value in apply(config, CONFIG, "parallel_config").joint.items():
        name = _ALIASES.get(key, key)
        is_switch = isinstance(getattr(_DEFAULTS, name), bool)
        if is_switch and not isinstance(value, bool):
            raise ValueError(f"parallel_config.{key} is {value!r}, but must be true or false")
        if not is_switch and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(
                f"parallel_config.{key} is {value!r}, but must be a whole number of at least 1"
            )
        if values.get(name, value) != value:
            raise ValueError(
                f"parallel_config gives {name} twice, as {values[name]} and as {key} {value}; keep "
                f"{name}"
            )
        values[name] = value
    return ParallelSizes(**values)


def check_context(context: Mapping[str, Any], world: World) -> list[str]:
    """Check the keys of ``parallel`` before any size is known.

    Returns:
        What the user should know, one line each.

    Raises:
        ValueError: an unknown key, no such mode, or one that does not fit the ranks.
    """
    mapped = apply(context, CONTEXT, "parallel")
    mode, lines = mode_of(mapped.joint, world)
    _check_world(mode, mapped.joint, world)
    return [*lines, *mapped.notes()]


def map_parallel(
    config: Mapping[str, Any],
    context: Mapping[str, Any],
    world: World = ALONE,
) -> Mapped:
    """Translate ``parallel_config`` in one of the four modes.

    Args:
        config: keys of ``parallel_config``.
        context: keys of ``parallel``; without ``parallel_mode`` a single rank stands alone, and
            several cut as ``parallel_config`` says.
        world: the ranks there are.

    Returns:
        Fields; in ``joint`` the mode and ``full_batch``.

    Raises:
        ValueError: an unknown key, sizes that do not make up the ranks, contradictory modes.
    """
    mapped = apply(context, CONTEXT, "parallel")
    asked = mapped.joint
    mode, lines = mode_of(asked, world)
    mapped.lines += lines
    for key in ("full_batch", "enable_parallel_optimizer", "gradients_mean"):
        if not isinstance(asked.get(key, False), bool):
            raise ValueError(f"parallel.{key} is {asked[key]!r}, but must be true or false")
    sizes = read_sizes(config)
    stages = asked.get("pipeline_stages", sizes.pipeline_stage)
    if stages != sizes.pipeline_stage and sizes.pipeline_stage == 1:
        sizes = read_sizes({**config, "pipeline_stage": stages})
    _check_world(mode, asked, world)
    mapped.put({"training_config.wrap_with_ddp": True})
    if mode in (ParallelMode.STAND_ALONE, ParallelMode.DATA_PARALLEL):
        _whole_model(mapped, mode, config)
    elif mode is ParallelMode.SEMI_AUTO_PARALLEL:
        _require_product(sizes, world)
        _cut_model(mapped, sizes, world)
    elif sizes.ranks == world.size:
        _cut_model(mapped, sizes, world)
    else:
        mapped.put({"dataset_config.micro_batch_num": sizes.micro_batches})
    _optimizer(mapped, sizes, asked, sizes.copies(mode, world.size))
    if asked.get("gradients_mean") is False and mode is ParallelMode.DATA_PARALLEL:
        mapped.lines.append(
            "gradients_mean False has no effect: the gradient is that of the mean over the batch"
        )
    mapped.joint = {"parallel_mode": mode, "full_batch": asked.get("full_batch", False)}
    return mapped


def _check_world(mode: ParallelMode, asked: Mapping[str, Any], world: World) -> None:
    if mode is ParallelMode.STAND_ALONE and world.size > 1:
        raise ValueError(
            f"parallel_mode stand_alone is for one rank, but there are {world.size}; start one, or "
            "use data_parallel, semi_auto_parallel or auto_parallel"
        )
    if mode is ParallelMode.DATA_PARALLEL and asked.get("full_batch"):
        raise ValueError(
            "parallel_mode data_parallel gives every rank a part of the batch of its own, but "
            "full_batch is True; set full_batch to False, or use semi_auto_parallel"
        )
    stated = asked.get("device_num", world.size)
    if stated != world.size:
        raise ValueError(
            f"device_num is {stated}, but there are {world.size} ranks; leave it out, or start "
            f"{stated}"
        )


def _whole_model(mapped: Mapped, mode: ParallelMode, config: Mapping[str, Any]) -> None:
    """Every rank holds the whole model; ``parallel_config`` is not read."""
    given = [
        f"{key} {value}"
        for key, value in config.items()
        if value not in (None, getattr(_DEFAULTS, _ALIASES.get(key, key)))
        and key not in ("vocab_emb_dp", "gradient_aggregation_group")  # they change no number
    ]
    if given:
        mapped.lines.append(
            f"parallel_config has no effect with parallel_mode {mode.value}: {', '.join(given)}"
        )


def _require_product(sizes: ParallelSizes, world: World) -> None:
    factors = {
        "data_parallel": sizes.data_parallel,
        "model_parallel": sizes.model_parallel,
        "pipeline_stage": sizes.pipeline_stage,
    }
    if sizes.context_parallel > 1:
        factors["context_parallel"] = sizes.context_parallel
    product = 1
    for size in factors.values():
        product *= size
    if product != world.size:
        text = " x ".join(f"{name} {size}" for name, size in factors.items())
        raise ValueError(
            f"{text} = {product}, but there are {world.size} ranks; change the sizes, or start "
            f"{product}"
        )
    if sizes.micro_batch_num < sizes.pipeline_stage:
        raise ValueError(
            f"micro_batch_num {sizes.micro_batch_num} is below pipeline_stage "
            f"{sizes.pipeline_stage}, so that stages would wait; use {sizes.pipeline_stage} or more"
        )


def _cut_model(mapped: Mapped, sizes: ParallelSizes, world: World) -> None:
    mapped.put(
        {
            "parallel_config.tensor_model_parallel_size": sizes.model_parallel,
            "parallel_config.pipeline_model_parallel_size": sizes.pipeline_stage,
            "parallel_config.context_parallel_size": sizes.context_parallel,
            "parallel_config.expert_model_parallel_size": sizes.expert_parallel,
            "dataset_config.micro_batch_num": sizes.micro_batches,
        }
    )
    if sizes.use_seq_parallel:
        if sizes.model_parallel > 1:
            mapped.put({"parallel_config.sequence_parallel": True})
        else:
            mapped.lines.append(
                "use_seq_parallel has no effect with model_parallel 1: it cuts what "
                "model-parallel ranks hold alike"
            )
    if sizes.vocab_emb_dp and sizes.model_parallel > 1:
        mapped.lines.append(
            f"vocab_emb_dp has no effect: the embedding is cut over the {sizes.model_parallel} "
            "model-parallel ranks; the numbers are the same, the memory is less"
        )
    if sizes.pipeline_stage > world.servers:
        mapped.lines.append(
            f"pipeline_stage {sizes.pipeline_stage} is more than the number of servers "
            f"({world.servers}): stages of one server share its memory bandwidth; a stage a server "
            "is the advice"
        )
    if sizes.pipeline_stage == 1 and sizes.micro_batch_num > 1:
        mapped.lines.append(
            f"micro_batch_num {sizes.micro_batch_num} with pipeline_stage 1: gradients of "
            f"{sizes.micro_batch_num} micro-batches are added up before each step"
        )


def _optimizer(
    mapped: Mapped, sizes: ParallelSizes, asked: Mapping[str, Any], data_parallel: int
) -> None:
    """What data-parallel ranks share of the optimizer, and how gradients are reduced."""
    is_sharded = sizes.optimizer_shard or bool(asked.get("enable_parallel_optimizer"))
    block = "parallel_optimizer_config."
    if is_sharded:
        mapped.put({"training_config.use_distributed_optimizer": True})
        ranks = asked.get(f"{block}optimizer_weight_shard_size", -1)
        if ranks not in (-1, 0):
            mapped.put({"parallel_config.zero_shard_size": ranks})
        if asked.get(f"{block}gradient_accumulation_shard"):
            mapped.put({"parallel_config.zero_level": "z2"})
    groups = sizes.gradient_aggregation_group
    if groups is not None and data_parallel > 1:
        mapped.put(
            {
                "training_config.ddp_num_buckets": groups,
                "training_config.overlap_grad_reduce": True,
            }
        )


def sequences_per_micro_batch(batch: int, sizes: ParallelSizes, data_parallel: int) -> int:
    """Sequences of one micro-batch on one rank, of a batch of all ranks.

    Raises:
        ValueError: the batch does not divide; names the batches that do.
    """
    parts = data_parallel * sizes.micro_batches
    if batch % parts:
        text = f"data_parallel {data_parallel} x micro_batch_num {sizes.micro_batch_num}"
        if sizes.micro_batch_interleave_num > 1:
            text += f" x micro_batch_interleave_num {sizes.micro_batch_interleave_num}"
        raise ValueError(
            f"a batch of {batch} sequences does not divide into {text} = {parts} parts; use a "
            f"batch of {nearest_multiples(batch, parts)}"
        )
    return batch // parts
