# SPDX-License-Identifier: Apache-2.0
"""Options of data parallel gradient reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ZeroLevel = Literal["z1", "z2", "z3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedDataParallelConfig:
    """How gradients are summed over the data parallel group, and what the ranks shard.

    Source: Megatron-LM ``DistributedDataParallelConfig`` (names and meaning of the fields it has).
    """

    grad_reduce_in_fp32: bool = False
    """Keep and reduce gradients in float32. False: in the type of the parameters."""

    overlap_grad_reduce: bool = False
    """Reduce a bucket as soon as its gradients are complete. False: all after the backward."""

    overlap_param_gather: bool = False
    """Gather updated parameters bucket by bucket, just before the next forward uses them. False:
    all at the end of the optimizer step."""

    use_distributed_optimizer: bool = False
    """Leave each rank its part of the reduced gradients and let it update only that part."""

    bucket_size: int | None = None
    """Elements after which a bucket closes. None: ``default_bucket_size`` when reductions overlap,
    else one bucket."""

    average_in_collective: bool = False
    """Let the collective average, instead of scaling gradients before it sums."""

    pad_buckets_for_high_nccl_busbw: bool = False
    """Make every bucket of the distributed optimizer a multiple of 2**16 elements."""

    mem_align_bytes: int = 1
    """Every parameter starts at a multiple of this many bytes of the gradient buffer."""

    check_for_nan_in_grad: bool = False
    """Look for NaN and infinity in the local gradients before they are reduced."""

    zero_level: ZeroLevel | None = None
    """What ranks shard beyond the optimizer state: z2 also gradients, z3 also the weights of the
    parallel layers. None: what ``use_distributed_optimizer`` says."""

    @property
    def is_sharded(self) -> bool:
        """Whether each rank updates only its part of the parameters."""
        return self.use_distributed_optimizer or self.zero_level is not None

    @property
    def shards_gradients(self) -> bool:
        """Whether gradients are reduced and sharded after every micro-batch."""
        return self.zero_level in ("z2", "z3")

    def __post_init__(self) -> None:
        """Refuse combinations without meaning.

        Raises:
            ValueError: overlapping the gather of parameters that are not sharded; an alignment
                that is not positive.
        """
        if self.overlap_param_gather and not self.is_sharded:
            raise ValueError(
                "overlap_param_gather is True without a distributed optimizer; there is nothing to "
                "gather: set use_distributed_optimizer=True or leave it False"
            )
        if self.mem_align_bytes < 1:
            raise ValueError(
                f"mem_align_bytes is {self.mem_align_bytes}; it must be at least 1: 512 aligns, 1 "
                "packs"
            )
