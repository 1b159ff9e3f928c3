# SPDX-License-Identifier: Apache-2.0
"""How the model and the data are spread over the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from mindspeed_ms.config.dtypes import FLOAT32, DType
from mindspeed_ms.config.kinds import Count, Layers, Ranks
from mindspeed_ms.config.section import Section
from mindspeed_ms.plan.settings import LayerList, RecomputeList


@dataclass(frozen=True, kw_only=True)
class ModelParallelConfig(Section):
    """Section ``parallel_config``, the layout.

    Sizes of the parallel axes, pipeline layout and recomputation per stage.
    """

    NAME: ClassVar[str] = "parallel_config"
    ALIASES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "nccl_communicator_config_path": "communicator_config_path",
            "tensor_parallel": "tensor_model_parallel_size",
            "pipeline_stage": "pipeline_model_parallel_size",
            "context_parallel": "context_parallel_size",
            "expert_parallel": "expert_model_parallel_size",
            "use_sequence_parallel": "sequence_parallel",
            "use_seq_parallel": "sequence_parallel",
        }
    )

    # --- sizes
    tensor_model_parallel_size: Ranks = 1
    """Ranks that share each layer's matrices (heads, ffn columns, vocabulary rows).

    1: layers are whole.
    """

    pipeline_model_parallel_size: Ranks = 1
    """Ranks that share the stack of layers as consecutive stages. 1: one rank holds all layers."""

    virtual_pipeline_model_parallel_size: Layers | None = None
    """Model chunks per pipeline stage (interleaved schedule). None: one chunk, plain 1F1B."""

    num_layers_per_virtual_pipeline_stage: Layers | None = None
    """Layers in one model chunk; another way to state the number of chunks.

    None: not interleaved.
    """

    context_parallel_size: Ranks = 1
    """Ranks that share each sequence. 1: every rank sees whole sequences."""

    context_parallel_algo: Literal[
        "ulysses_cp_algo", "megatron_cp_algo", "hybrid_cp_algo", "kvallgather_cp_algo"
    ] = "ulysses_cp_algo"
    """How attention crosses the sequence shards: all-to-all over heads, ring over chunks, both, or
    keys and values gathered.
    """

    ulysses_degree_in_cp: Ranks | None = None
    """With ``hybrid_cp_algo``: ranks of the all-to-all part; must divide context_parallel_size.
    None elsewhere.
    """

    attention_mask_type: Literal["causal", "full", "general"] = "causal"
    """What hides keys: later tokens (and, with reset_attention_mask, other documents), nothing, or
    the dense attention_mask of each micro-batch.
    """

    expert_model_parallel_size: Ranks = 1
    """Ranks that share the experts of each MoE layer; a part of the data-parallel ranks.

    1: all experts on each rank.
    """

    expert_tensor_parallel_size: Ranks | None = None
    """Ranks that share one expert's matrices. None: the same as tensor_model_parallel_size."""

    order: str = "tp-cp-ep-dp-pp"
    """Which axis varies fastest in the rank number, first name fastest."""

    # --- tensor parallel
    sequence_parallel: bool = False
    """Split norm and dropout regions along the sequence over the tensor-parallel ranks.

    Off with a tensor-parallel size of 1, where there is nothing to split.
    """

    async_tensor_model_parallel_allreduce: bool = True
    """Reduce the input gradient of a column-parallel layer while its weight gradient is computed.

    True: overlap.
    """

    gradient_accumulation_fusion: bool = False
    """Add weight gradients straight into the main gradient buffer.

    False: as separate tensors first.
    """

    # --- pipeline layout
    num_layer_list: LayerList | None = None
    """Layers of each stage, ``[16,16,16,14]``, or of each chunk and stage, ``[[4,4],[4,4]]``
    (outer: chunk). None: split automatically.
    """

    allow_uneven_stages: bool = True
    """Let the automatic split give some stages one layer more when the counts do not divide.

    Megatron flags set it to False.
    """

    noop_layers: tuple[int, ...] | None = None
    """Global numbers (from 0) of layers that pass their input through.

    None: every layer computes.
    """

    decoder_first_pipeline_num_layers: Layers | None = None
    """Layers of the first stage; the others share the rest. None: not set apart."""

    decoder_last_pipeline_num_layers: Layers | None = None
    """Layers of the last stage; the others share the rest. None: not set apart."""

    account_for_embedding_in_pipeline_split: bool = False
    """Count the embedding as a layer in the even split, so that the first stage gets one less."""

    account_for_loss_in_pipeline_split: bool = False
    """Count the head as a layer in the even split, so that the last stage gets one less."""

    pipeline_model_parallel_layout: str | None = None
    """All parts of the model in order, E embedding, t layer, L loss, with | between the parts of
    stages (and chunks) and ``x*n``, ``(...)*n`` to repeat: ``Ett|(tt|)*2tL``. None: split by the
    other options.
    """

    standalone_embedding_stage: bool = False
    """Give the embedding a pipeline stage of its own, without layers. False: it shares stage 0."""

    overlap_p2p_comm: bool = True
    """Send activations while the next chunk computes (interleaved schedule only). True: overlap."""

    variable_seq_lengths: bool = False
    """Let the sequence length change between micro-batches; stages then exchange shapes first.

    False: one fixed length.
    """

    microbatch_group_size_per_vp_stage: Count | None = None
    """Micro-batches a chunk runs before the next chunk takes over.

    None: the number of pipeline stages.
    """

    recv_dtype: DType = FLOAT32
    """Data type of activations received from another stage.

    Built from YAML or flags it follows compute_dtype.
    """

    # --- recomputation per stage
    recompute: RecomputeList | None = None
    """Layers recomputed completely in backward, per stage; the first ones of each stage or chunk.

    None: recompute_granularity of the model decides.
    """

    select_recompute: RecomputeList | None = None
    """Layers whose attention core and activation function are recomputed, per stage. None: none."""

    select_comm_recompute: RecomputeList | None = None
    """Layers whose sequence-parallel gather is repeated in backward instead of kept, per stage;
    the others then keep it. None: it is repeated everywhere, as in Megatron.
    """

    recompute_in_advance: bool = False
    """On a pipeline stage, compute complete layers again before waiting for the gradient instead of
    after it; all of a chunk's stay until its backward."""

    recompute_in_bubble: bool = False
    """The same, under MindSpeed's other name."""

    # --- data parallel
    zero_level: Literal["z1", "z2", "z3"] | None = None
    """What data-parallel ranks shard: z1 optimizer state, z2 also gradients, z3 also weights. None:
    nothing.
    """

    zero_shard_size: Ranks | None = None
    """Ranks that share one optimizer state; a divisor of the data × context parallel size, whose
    other parts keep equal copies. None: num_distributed_optimizer_instances decides.
    """

    num_distributed_optimizer_instances: Ranks = 1
    """Copies of the sharded optimizer state among the data-parallel ranks; another way to state
    zero_shard_size.
    """

    # --- start
    use_cpu_initialization: bool = False
    """Seed the initial weights of each pipeline stage apart, as Megatron's flag does. False: all
    stages draw from one stream, so that weights do not depend on the layout at all.
    """

    deterministic_mode: bool = False
    """Only use kernels whose result is the same in every run. False: the fastest ones."""

    communicator_config_path: str | None = None
    """File with tuning options of the communication library. None: the library's own values."""

    distributed_timeout_minutes: Count = 10
    """Minutes a rank waits for the others before it gives up."""

    @property
    def shards_gradients(self) -> bool:
        """Whether gradients are reduced and sharded after every micro-batch."""
        return self.zero_level in ("z2", "z3")

    @property
    def recomputes_early(self) -> bool:
        """Whether stages use the time in which they wait for gradients to recompute."""
        return self.recompute_in_advance or self.recompute_in_bubble

    @property
    def recompute_config(self) -> dict[str, RecomputeList] | None:
        """The three recompute lists as one mapping, None when none is set."""
        lists = {
            "recompute": self.recompute,
            "select_recompute": self.select_recompute,
            "select_comm_recompute": self.select_comm_recompute,
        }
        given = {name: value for name, value in lists.items() if value is not None}
        return given or None

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model and one sequence: tensor × pipeline × context."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    @property
    def hierarchical_context_parallel_sizes(self) -> tuple[int, int]:
        """Context-parallel ranks that exchange heads, and ranks of a ring."""
        size = self.context_parallel_size
        if self.context_parallel_algo == "ulysses_cp_algo":
            return size, 1
        degree = self.ulysses_degree_in_cp or 1
        if self.context_parallel_algo != "hybrid_cp_algo" or size == 1:
            degree = 1
        return degree, size // degree

    def data_parallel_size(self, world_size: int) -> int:
        """Return the number of model copies in a world.

        Raises:
            ValueError: the world does not divide into whole copies.

        """
        if world_size % self.model_parallel_size:
            raise ValueError(
                f"world size ({world_size}) must be a multiple of tensor "
                f"({self.tensor_model_parallel_size}) × "
                f"pipeline ({self.pipeline_model_parallel_size}) × context "
                f"({self.context_parallel_size}) "
                f"parallel size = {self.model_parallel_size}; start "
                f"{_multiples(world_size, self.model_parallel_size)} "
                f"ranks or lower one of the sizes"
            )
        return world_size // self.model_parallel_size

    def optimizer_instances(self, world_size: int) -> int:
        """Return the number of copies of the sharded optimizer state.

        Raises:
            ValueError: the data-parallel ranks do not divide into whole copies, or the two ways to
                state the number disagree.

        """
        return self.optimizer_instances_of(
            self.data_parallel_size(world_size) * self.context_parallel_size
        )

    def optimizer_instances_of(self, ranks: int) -> int:
        """As ``optimizer_instances``, for a number of data × context parallel ranks."""
        stated, size = self.num_distributed_optimizer_instances, self.zero_shard_size
        instances = stated if size is None else ranks // size
        if ranks % (size or stated) or (size is not None and stated not in (1, instances)):
            raise ValueError(
                f"zero_shard_size ({size}) and num_distributed_optimizer_instances ({stated}) must "
                f"cut the {ranks} data × context parallel ranks into equal parts; give one of "
                f"them, a divisor of {ranks}"
            )
        return instances

    def _resolve(self) -> None:
        if self.tensor_model_parallel_size == 1:
            self._set("sequence_parallel", False)

    def _check(self) -> None:
        self._check_order()
        self._check_pipeline()
        self._check_context_parallel()

    def _check_order(self) -> None:
        axes = self.order.split("-")
        if len(set(axes)) != len(axes) or not set(axes) <= {"tp", "cp", "ep", "dp", "pp"}:
            raise ValueError(
                f"parallel_config.order is {self.order!r}, but must name each of tp, cp, ep, dp, "
                "pp at most once, "
                f"joined by '-'; the usual order is tp-cp-ep-dp-pp"
            )

    def _check_pipeline(self) -> None:
        stages = self.pipeline_model_parallel_size
        chunks = self.virtual_pipeline_model_parallel_size
        if chunks is not None and chunks > 1 and stages < 2:
            raise ValueError(
                f"virtual_pipeline_model_parallel_size ({chunks}) needs "
                "pipeline_model_parallel_size of at least 2, "
                f"given {stages}; leave it out or raise the pipeline size"
            )
        if self.num_layer_list is None:
            return
        rows = self.num_layer_list
        shape = _shape(rows)
        allowed: tuple[tuple[int, ...], ...]
        if chunks is None or chunks == 1:
            allowed = ((stages,), (1, stages))
        else:
            allowed = ((chunks, stages),)
        if shape not in allowed:
            raise ValueError(
                f"num_layer_list has shape {shape or 'uneven rows'}, but must have shape "
                f"{allowed[0]} "
                "(chunks, stages); write one count per stage and chunk or change the pipeline "
                "sizes"
            )
        counts = [count for row in rows for count in (row if isinstance(row, tuple) else (row,))]
        if min(counts) < 1:
            raise ValueError(
                f"num_layer_list {rows} has a stage without layers; every count must be at least "
                "1, "
                f"move a layer there"
            )

    def _check_context_parallel(self) -> None:
        size, degree = self.context_parallel_size, self.ulysses_degree_in_cp
        if self.context_parallel_algo == "hybrid_cp_algo" and size > 1:
            if degree is None:
                raise ValueError(
                    "context_parallel_algo hybrid_cp_algo needs ulysses_degree_in_cp; "
                    f"give a divisor of context_parallel_size ({size}) smaller than it"
                )
            if size % degree or degree == size:
                raise ValueError(
                    f"ulysses_degree_in_cp ({degree}) must divide context_parallel_size ({size}) "
                    "and be smaller; "
                    f"choose such a divisor or use ulysses_cp_algo"
                )


def _shape(rows: LayerList) -> tuple[int, ...] | None:
    """Return the shape of a layer list, None when its rows differ in length."""
    lengths = {len(row) if isinstance(row, tuple) else 0 for row in rows}
    if len(lengths) != 1:
        return None
    inner = lengths.pop()
    return (len(rows), inner) if inner else (len(rows),)


def _multiples(value: int, step: int) -> str:
    """Return the multiples of ``step`` on both sides of ``value`` as text."""
    below = value // step * step
    return f"{below} or {below + step}" if below else f"{step}"
