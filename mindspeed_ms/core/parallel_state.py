# SPDX-License-Identifier: Apache-2.0
"""The process groups of this rank, under Megatron's names.

One frozen ``ParallelState``, a member of the active run, is built by ``initialize_model_parallel``.
Every group of every rank is created there, eagerly and in one order, because creating a group is
collective. The getters are one-line reads of it, for entry points and for constructors that were
given no group; nothing reads them while a model computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mindspeed_ms.backend import comm
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core import run_state
from mindspeed_ms.plan.rank_generator import RankGenerator

_DENSE_GROUPS = {
    "tp": "tp",
    "cp": "cp",
    "dp": "dp",
    "dp_cp": "dp-cp",
    "pp": "pp",
    "model": "tp-pp",
    "tp_cp": "tp-cp",
    "tp_dp": "tp-dp",
    "tp_dp_cp": "tp-dp-cp",
}
_EXPERT_GROUPS = {
    "ep": "ep",
    "expert_tp": "tp",
    "expert_dp": "dp",
    "expert_tp_ep": "tp-ep",
    "expert_model": "tp-ep-pp",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelState:
    """Groups that contain this rank, by role, and its place in the pipeline."""

    groups: Mapping[str, Group]
    virtual_pipeline_rank: int | None = None
    virtual_pipeline_size: int | None = None
    context_ranks: tuple[tuple[int, ...], ...] = ()
    """Ranks of every context parallel group."""

    def group(self, role: str) -> Group:
        """Group of a role, e.g. ``tp`` or ``dp_cp``."""
        return self.groups[role]


def _state() -> ParallelState:
    state = run_state.current().find(ParallelState)
    if state is None:
        raise RuntimeError(
            "model parallel groups do not exist yet; call initialize_model_parallel() first"
        )
    return state


def rank_generators(
    world_size: int,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    context: int = 1,
    expert: int = 1,
    expert_tensor: int | None = None,
    order: str = "tp-cp-ep-dp-pp",
) -> tuple[RankGenerator, RankGenerator]:
    """Grids of the dense and of the expert parameters over the same ranks.

    Expert parallelism lies inside data x context parallelism: the expert grid has no context axis,
    ``expert_tensor`` (default ``tensor``) along tp, and data parallelism is what remains.

    Raises:
        RuntimeError: the world size does not fit the layout, or the order is invalid.

    Source: Megatron-LM core 0.12 ``initialize_model_parallel`` (behaviour).
    """
    expert_tensor = tensor if expert_tensor is None else expert_tensor
    dense_size, expert_size = tensor * pipeline * context, expert_tensor * expert * pipeline
    for size, formula in (
        (dense_size, f"tensor ({tensor}) x pipeline ({pipeline}) x context ({context})"),
        (
            expert_size,
            f"expert tensor ({expert_tensor}) x expert ({expert}) x pipeline ({pipeline})",
        ),
    ):
        if world_size % size:
            raise RuntimeError(
                f"world size is {world_size}; it must be a multiple of {formula} parallel size = "
                f"{size}: start {_nearest_multiples(world_size, size)} processes or change a size"
            )
    try:
        dense = RankGenerator(
            {"tp": tensor, "cp": context, "dp": world_size // dense_size, "pp": pipeline},
            _completed(order, ("tp", "cp", "dp", "pp"), drop="ep"),
        )
        experts = RankGenerator(
            {
                "tp": expert_tensor,
                "ep": expert,
                "dp": world_size // expert_size,
                "pp": pipeline,
            },
            _completed(order, ("tp", "ep", "dp", "pp"), drop="cp"),
        )
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    if dense.get_ranks("pp") != experts.get_ranks("pp"):
        raise RuntimeError(
            f"order {order!r} puts dense and expert parameters into different pipelines; "
            "place pp last, as in 'tp-cp-ep-dp-pp'"
        )
    return dense, experts


def _completed(order: str, axes: tuple[str, ...], drop: str) -> str:
    """``order`` without one axis; an axis that is missing comes last (it has size 1)."""
    kept = [axis for axis in order.lower().split("-") if axis != drop]
    return "-".join(kept + [axis for axis in axes if axis not in kept])


def _nearest_multiples(value: int, step: int) -> str:
    lower = value // step * step
    return f"{lower} or {lower + step}" if lower else str(step)


def initialize_model_parallel(  # noqa: PLR0913 - Megatron's public signature
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    virtual_pipeline_model_parallel_size: int | None = None,
    pipeline_model_parallel_split_rank: int | None = None,
    context_parallel_size: int = 1,
    expert_model_parallel_size: int = 1,
    order: str = "tp-cp-ep-dp-pp",
    communicator_config_path: str | None = None,
    *,
    expert_tensor_parallel_size: int | None = None,
    num_distributed_optimizer_instances: int = 1,
    hierarchical_context_parallel_sizes: Sequence[int] | None = None,
) -> None:
    """Create all groups of all ranks.

    Args:
        tensor_model_parallel_size: ranks that share each layer's matrices.
        pipeline_model_parallel_size: consecutive stages of layers.
        virtual_pipeline_model_parallel_size: model chunks per stage, None for one.
        pipeline_model_parallel_split_rank: accepted as None only; encoder-decoder models are not
            part of this project.
        context_parallel_size: ranks that share each sequence.
        expert_model_parallel_size: ranks that share the experts of a layer.
        order: axes from fastest to slowest varying rank number.
        communicator_config_path: accepted as None only; it configures NCCL.
        expert_tensor_parallel_size: tensor parallel size inside an expert, default
            ``tensor_model_parallel_size``.
        num_distributed_optimizer_instances: parts of the data parallel group that each shard a
            whole optimizer state.
        hierarchical_context_parallel_sizes: (neighbouring ranks that exchange heads, ranks of a
            ring), whose product is ``context_parallel_size``; None for a ring of all.

    Raises:
        RuntimeError: communication is not initialised; the groups exist already; the world size
            does not fit; the order is invalid; virtual stages without a pipeline; data parallelism
            does not divide into optimizer instances.

    Parallelism: collective over the world, with equal arguments on every rank.
    """
    _check_start(pipeline_model_parallel_split_rank, communicator_config_path)
    if virtual_pipeline_model_parallel_size is not None and pipeline_model_parallel_size < 2:
        raise RuntimeError(
            f"virtual_pipeline_model_parallel_size is {virtual_pipeline_model_parallel_size} but "
            f"pipeline_model_parallel_size is {pipeline_model_parallel_size}; virtual stages need "
            "at least 2 pipeline stages"
        )
    dense, experts = rank_generators(
        comm.get_world_size(),
        tensor=tensor_model_parallel_size,
        pipeline=pipeline_model_parallel_size,
        context=context_parallel_size,
        expert=expert_model_parallel_size,
        expert_tensor=expert_tensor_parallel_size,
        order=order,
    )
    groups = {role: _create(dense.get_ranks(axes)) for role, axes in _DENSE_GROUPS.items()}
    groups |= {role: _create(experts.get_ranks(axes)) for role, axes in _EXPERT_GROUPS.items()}
    pipelines = dense.get_ranks("pp")
    # The tied embedding lives on the first and the last stage, position embeddings on the first.
    groups["embedding"] = _create([tuple(dict.fromkeys((p[0], p[-1]))) for p in pipelines])
    groups["position_embedding"] = _create([p[:1] for p in pipelines])
    context_ranks = tuple(dense.get_ranks("cp"))
    groups |= _context_groups(
        context_ranks,
        hierarchical_context_parallel_sizes
        or _hybrid_sizes(context_parallel_size)
        or (1, context_parallel_size),
    )
    groups |= _optimizer_groups(dense.get_ranks("dp-cp"), num_distributed_optimizer_instances)
    run_state.current().put(
        ParallelState(
            groups=groups,
            virtual_pipeline_rank=0 if virtual_pipeline_model_parallel_size else None,
            virtual_pipeline_size=virtual_pipeline_model_parallel_size,
            context_ranks=context_ranks,
        )
    )


def _hybrid_sizes(size: int) -> tuple[int, int] | None:
    """(Ranks that exchange heads, ranks of a ring) of the arguments that a script has set.

    None when no ranks share a sequence: the arguments may be those of another layout.
    """
    if size == 1:
        return None
    args = run_state.current().args
    args = getattr(args, "parallel_config", None) or args
    degree = getattr(args, "ulysses_degree_in_cp", None)
    if getattr(args, "context_parallel_algo", None) != "hybrid_cp_algo" or not degree:
        return None
    return degree, size // degree


def _check_start(split_rank: int | None, communicator_config_path: str | None) -> None:
    """Groups are made once, after communication has begun, for a decoder without NCCL."""
    if not comm.is_initialized() and comm.started_by_script():
        comm.init_process_group()
    if not comm.is_initialized():
        raise RuntimeError("communication is not initialised; call init_process_group() first")
    if model_parallel_is_initialized():
        raise RuntimeError(
            "model parallel groups exist already; call destroy_model_parallel() before a new layout"
        )
    if split_rank is not None or communicator_config_path is not None:
        raise RuntimeError(
            "pipeline_model_parallel_split_rank and communicator_config_path must be None: "
            "there is no encoder-decoder model and no NCCL here"
        )


def _optimizer_groups(data_ranks: list[tuple[int, ...]], instances: int) -> dict[str, Group]:
    """Ranks that share one optimizer state, and ranks that own the same shard of different ones."""
    size = len(data_ranks[0])
    if size % instances:
        raise RuntimeError(
            f"num_distributed_optimizer_instances is {instances}; it must divide the data x "
            f"context parallel size {size}"
        )
    part = size // instances
    return {
        "optimizer": _create(
            [ranks[i : i + part] for ranks in data_ranks for i in range(0, size, part)]
        ),
        "optimizer_replicas": _create(
            [ranks[i::part] for ranks in data_ranks for i in range(part)]
        ),
    }


def _context_groups(
    context_ranks: Sequence[tuple[int, ...]], sizes: Sequence[int]
) -> dict[str, Group]:
    """Neighbours that exchange heads, and ranks that hold the same place among their neighbours."""
    size = len(context_ranks[0])
    if len(sizes) != 2 or min(sizes) < 1 or sizes[0] * sizes[1] != size:
        raise RuntimeError(
            f"hierarchical_context_parallel_sizes is {tuple(sizes)}; it must hold two sizes, of "
            f"all-to-all and of ring, whose product is the context parallel size {size}"
        )
    inner = sizes[0]
    return {
        "cp_ulysses": _create(
            [ranks[i : i + inner] for ranks in context_ranks for i in range(0, size, inner)]
        ),
        "cp_ring": _create([ranks[i::inner] for ranks in context_ranks for i in range(inner)]),
    }


def without_pipeline() -> ParallelState:
    """The present layout for a model whose layers are all on one rank.

    Parallelism: collective over the world.
    """
    state = _state()
    alone = _create([(rank,) for rank in range(comm.get_world_size())])
    roles = dict.fromkeys(("pp", "embedding", "position_embedding"), alone)
    roles |= {"model": state.group("tp"), "expert_model": state.group("expert_tp_ep")}
    return replace(
        state,
        groups={**state.groups, **roles},
        virtual_pipeline_rank=None,
        virtual_pipeline_size=None,
    )


def _create(all_ranks: list[tuple[int, ...]]) -> Group:
    """Create every group of one role; returns the one of this rank, or one it is not part of."""
    me = comm.get_rank()
    groups = [comm.new_group(ranks) for ranks in all_ranks]
    return next((group for group in groups if me in group.ranks), groups[0])


def model_parallel_is_initialized() -> bool:
    """True between ``initialize_model_parallel`` and ``destroy_model_parallel``."""
    return run_state.current().find(ParallelState) is not None


is_initialized = model_parallel_is_initialized


def destroy_model_parallel() -> None:
    """Forget the layout, so that another one can be built in this process."""
    run_state.current().remove(ParallelState)


# Groups -----------------------------------------------------------------------------------------


def get_model_parallel_group() -> Group:
    """Tensor x pipeline parallel group: the ranks that hold one copy of the model."""
    return _state().group("model")


def get_tensor_model_parallel_group() -> Group:
    """Ranks that share each layer's matrices."""
    return _state().group("tp")


def get_pipeline_model_parallel_group() -> Group:
    """Ranks that hold the consecutive stages."""
    return _state().group("pp")


def get_data_parallel_group(with_context_parallel: bool = False) -> Group:
    """Ranks with the same parameters and other data (or other parts of the sequence)."""
    return _state().group("dp_cp" if with_context_parallel else "dp")


def get_distributed_optimizer_group() -> Group:
    """Ranks that share one optimizer state: the data x context parallel group or a part of it."""
    return _state().group("optimizer")


def get_distributed_optimizer_replica_group() -> Group:
    """Ranks that own the same shard in different optimizer instances; often this rank alone."""
    return _state().group("optimizer_replicas")


def get_context_parallel_group() -> Group:
    """Ranks that share each sequence."""
    return _state().group("cp")


def get_hierarchical_context_parallel_groups() -> tuple[Group, Group]:
    """(Ranks that exchange heads, ranks of a ring); their product is the context parallel group."""
    return _state().group("cp_ulysses"), _state().group("cp_ring")


def get_context_parallel_group_for_hybrid_ulysses() -> Group:
    """The predecessor's name of the ranks that exchange heads."""
    return _hybrid_group("cp_ulysses")


def get_context_parallel_group_for_hybrid_ring() -> Group:
    """The predecessor's name of the ranks of a ring."""
    return _hybrid_group("cp_ring")


def _hybrid_group(role: str) -> Group:
    """As the arguments want it, also if they were set after the groups were made (collective)."""
    state = _state()
    wanted = _hybrid_sizes(state.group("cp").size)
    if wanted is not None and state.group("cp_ulysses").size != wanted[0]:
        groups = {**state.groups, **_context_groups(state.context_ranks, wanted)}
        state = replace(state, groups=groups)
        run_state.current().put(state)
    return state.group(role)


def get_embedding_group() -> Group:
    """First and last pipeline stage, which hold copies of a tied embedding."""
    return _state().group("embedding")


def get_position_embedding_group() -> Group:
    """Stages that hold position embeddings: the first."""
    return _state().group("position_embedding")


def get_tensor_and_context_parallel_group() -> Group:
    """Ranks that work on the same samples."""
    return _state().group("tp_cp")


def get_tensor_and_data_parallel_group(with_context_parallel: bool = False) -> Group:
    """All ranks of one pipeline stage (of one context position unless asked for all)."""
    return _state().group("tp_dp_cp" if with_context_parallel else "tp_dp")


def get_expert_model_parallel_group() -> Group:
    """Ranks that share the experts of a layer."""
    return _state().group("ep")


def get_expert_tensor_parallel_group() -> Group:
    """Ranks that share the matrices of an expert."""
    return _state().group("expert_tp")


def get_expert_data_parallel_group() -> Group:
    """Ranks that hold the same experts."""
    return _state().group("expert_dp")


def get_expert_tensor_and_model_parallel_group() -> Group:
    """Ranks that exchange tokens of one expert layer."""
    return _state().group("expert_tp_ep")


def get_expert_tensor_model_pipeline_parallel_group() -> Group:
    """Ranks that hold one copy of all experts."""
    return _state().group("expert_model")


# Sizes and ranks --------------------------------------------------------------------------------


def get_tensor_model_parallel_world_size() -> int:
    """Tensor parallel size."""
    return _state().group("tp").size


def get_tensor_model_parallel_rank() -> int:
    """Position in the tensor parallel group."""
    return _state().group("tp").rank


def get_tensor_model_parallel_src_rank() -> int:
    """Global rank of the first member of the tensor parallel group."""
    return _state().group("tp").ranks[0]


def get_pipeline_model_parallel_world_size() -> int:
    """Number of pipeline stages."""
    return _state().group("pp").size


def get_pipeline_model_parallel_rank() -> int:
    """Stage of this rank."""
    return _state().group("pp").rank


def get_data_parallel_world_size(with_context_parallel: bool = False) -> int:
    """Data parallel size."""
    return get_data_parallel_group(with_context_parallel).size


def get_data_parallel_rank(with_context_parallel: bool = False) -> int:
    """Position in the data parallel group."""
    return get_data_parallel_group(with_context_parallel).rank


def get_data_parallel_src_rank(with_context_parallel: bool = False) -> int:
    """Global rank of the first member of the data parallel group."""
    return get_data_parallel_group(with_context_parallel).ranks[0]


def get_context_parallel_world_size() -> int:
    """Context parallel size."""
    return _state().group("cp").size


def get_context_parallel_rank() -> int:
    """Position in the context parallel group."""
    return _state().group("cp").rank


def get_context_parallel_global_ranks() -> tuple[int, ...]:
    """Global ranks of the context parallel group."""
    return _state().group("cp").ranks


def get_expert_model_parallel_world_size() -> int:
    """Expert parallel size."""
    return _state().group("ep").size


def get_expert_model_parallel_rank() -> int:
    """Position in the expert parallel group."""
    return _state().group("ep").rank


def get_expert_tensor_parallel_world_size() -> int:
    """Tensor parallel size inside an expert."""
    return _state().group("expert_tp").size


def get_expert_tensor_parallel_rank() -> int:
    """Position in the expert tensor parallel group."""
    return _state().group("expert_tp").rank


def get_expert_data_parallel_world_size() -> int:
    """Number of copies of each expert."""
    return _state().group("expert_dp").size


def get_expert_data_parallel_rank() -> int:
    """Position among the copies of this rank's experts."""
    return _state().group("expert_dp").rank


# Pipeline position ------------------------------------------------------------------------------


def get_virtual_pipeline_model_parallel_rank() -> int | None:
    """Model chunk that is being built or run, None without virtual stages."""
    return _state().virtual_pipeline_rank


def get_virtual_pipeline_model_parallel_world_size() -> int | None:
    """Model chunks per stage, None without virtual stages."""
    return _state().virtual_pipeline_size


def set_virtual_pipeline_model_parallel_rank(rank: int | None) -> None:
    """Name the model chunk that is being built or run."""
    run_state.current().put(replace(_state(), virtual_pipeline_rank=rank))


def set_virtual_pipeline_model_parallel_world_size(size: int | None) -> None:
    """Set the number of model chunks per stage."""
    run_state.current().put(replace(_state(), virtual_pipeline_size=size))


def is_pipeline_first_stage(ignore_virtual: bool = False) -> bool:
    """True where the embedding lives (with virtual stages: and its chunk is the current one)."""
    state = _state()
    if not ignore_virtual and state.virtual_pipeline_size and state.virtual_pipeline_rank != 0:
        return False
    return state.group("pp").rank == 0


def is_pipeline_last_stage(ignore_virtual: bool = False) -> bool:
    """True where the loss is computed (with virtual stages: and its chunk is the current one)."""
    state = _state()
    if (
        not ignore_virtual
        and state.virtual_pipeline_size
        and state.virtual_pipeline_rank != state.virtual_pipeline_size - 1
    ):
        return False
    return state.group("pp").rank == state.group("pp").size - 1


def is_rank_in_embedding_group(ignore_virtual: bool = False) -> bool:
    """True where a copy of a tied embedding lives."""
    return is_pipeline_first_stage(ignore_virtual) or is_pipeline_last_stage(ignore_virtual)


def get_pipeline_model_parallel_first_rank() -> int:
    """Global rank of the first stage."""
    return _state().group("pp").ranks[0]


def get_pipeline_model_parallel_last_rank() -> int:
    """Global rank of the last stage."""
    return _state().group("pp").ranks[-1]


def get_pipeline_model_parallel_next_rank() -> int:
    """Global rank of the following stage (the first follows the last)."""
    group = _state().group("pp")
    return group.ranks[(group.rank + 1) % group.size]


def get_pipeline_model_parallel_prev_rank() -> int:
    """Global rank of the preceding stage (the last precedes the first)."""
    group = _state().group("pp")
    return group.ranks[(group.rank - 1) % group.size]
