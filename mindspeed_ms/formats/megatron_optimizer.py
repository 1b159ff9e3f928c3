# SPDX-License-Identifier: Apache-2.0
"""The optimizer's tensors in Megatron's ``torch`` checkpoints.

Without the distributed optimizer every rank's file holds the state by number: parameters group by
group, in the order of the model. With it, ``distrib_optim.pt`` holds flat buffers, one for each
type of parameters and model chunk, in which parameters lie in backward order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mindspeed_ms.config.optimizer_config import STATE_NAMES
from mindspeed_ms.formats import dtypes, names
from mindspeed_ms.formats.catalog import Catalog, StoredTensor, TensorReader
from mindspeed_ms.formats.containers.torch_file import TensorRef, TorchFile
from mindspeed_ms.formats.megatron_parts import (
    Chunk,
    Part,
    RankFile,
    Sizes,
    add_piece,
    global_span,
)
from mindspeed_ms.models import ParamSpec
from mindspeed_ms.plan.param_layout import (
    PARAM_ALIGNMENT,
    LayoutRules,
    buffer_layout,
    default_bucket_size,
    sharded_alignment,
)
from mindspeed_ms.plan.region import Region, Span

OPTIMIZER_FILE = "distrib_optim.pt"


def add_optimizer(catalog: Catalog, files: Sequence[RankFile], args: Any, sizes: Sizes) -> None:
    """Add moments and fp32 weights to a catalog, if the checkpoint holds them.

    Raises:
        ValueError: their number or size does not fit the parameters.
    """
    from_state: dict[str, Any] = {}
    for item in files:
        state = item.file.content.get("optimizer")
        if state is None:
            return
        path = item.folder / OPTIMIZER_FILE
        if path.is_file():
            _add_flat(catalog, item, TorchFile(path), args, sizes)
        elif _has_state(state):
            for one, members in _by_group(state):
                _add_numbered(catalog, item, one, members, sizes)
        from_state = from_state or _steps(state, item.file)
    if sizes.is_tied:
        for kind in ("main", *STATE_NAMES):
            catalog.tensors.pop(f"{kind}.{names.HEAD}", None)
    catalog.common["optimizer"] = from_state


def _inner(state: Any) -> Mapping[str, Any]:
    """What the update rule itself keeps."""
    return state.get("optimizer", state)


@dataclass(frozen=True, slots=True)
class _Members:
    """What one of several chained optimizers updates; None: it makes no difference."""

    expert: bool | None = None
    matrix: bool | None = None

    def has(self, part: Part, sizes: Sizes) -> bool:
        """Whether a parameter is among them."""
        if self.expert is not None and sizes.expert > 1:
            if (part.spec.expert is not None) != self.expert:
                return False
        return self.matrix is None or is_muon_matrix(part.spec) == self.matrix


def is_muon_matrix(spec: ParamSpec) -> bool:
    """Whether Muon updates a parameter, where it is the optimizer."""
    return len(spec.shape) == 2 and not spec.is_vocabulary


def _by_group(state: Any) -> list[tuple[Mapping[Any, Any], _Members]]:
    """States of the chained optimizers: of dense parameters and of experts, each perhaps by Muon.

    Muon's come first.
    """
    if isinstance(state, list | tuple):
        chained = list(state)
    elif set(state) and all(isinstance(key, int) for key in state):
        chained = [state[key] for key in sorted(state)]
    else:
        return [(state, _Members())]
    by_muon = [one is not None and _is_muon(one) for one in chained]
    if not any(by_muon) or all(by_muon):  # all: of SGD
        return [(one, _Members(expert=number > 0)) for number, one in enumerate(chained)]
    first = {kind: by_muon.index(kind) for kind in set(by_muon)}
    return [
        (one, _Members(expert=number > first[kind], matrix=kind))
        for number, (one, kind) in enumerate(zip(chained, by_muon, strict=True))
    ]


def _is_muon(state: Mapping[str, Any]) -> bool:
    return any("momentum_buffer" in one for one in _inner(state).get("state", {}).values())


def _has_state(state: Any) -> bool:
    first = state[0] if isinstance(state, list | tuple) else state
    return bool(_inner(first).get("state"))


def _steps(state: Any, file: TorchFile) -> dict[str, Any]:
    """Number of updates and the loss scale."""
    first = state[0] if isinstance(state, list | tuple) else state
    inner = _inner(first)
    step: Any = None
    for group in inner.get("param_groups", ()):
        step = step if group.get("step") is None else group["step"]
    for one in inner.get("state", {}).values():
        step = one.get("step", step)
        break
    if isinstance(step, TensorRef):
        step = file.numbers(step)[0]
    result: dict[str, Any] = {} if step is None else {"num_steps": int(step)}
    scaler = first.get("grad_scaler") if isinstance(first, Mapping) else None
    if scaler:
        result["grad_scaler"] = {
            key: float(file.numbers(value)[0]) if isinstance(value, TensorRef) else value
            for key, value in scaler.items()
        }
    return result


# --- by number --------------------------------------------------------------------------------


def has_decay(part_name: str, shape: Sequence[int]) -> bool:
    """Whether weights of a parameter decay: not those of biases and of norms.

    Args:
        part_name: its name in Megatron's file.
        shape: its local shape.
    """
    return not (part_name.endswith(".bias") or len(shape) == 1)


def _unique(chunks: Iterable[Chunk], expert: bool | None, sizes: Sizes) -> list[Part]:
    """Parameters of a rank in the order of the model."""
    parts = [part for chunk in chunks for part in chunk.parts]
    if expert is None or sizes.expert == 1:
        return parts
    return [part for part in parts if (part.spec.expert is not None) == expert]


def _add_numbered(
    catalog: Catalog,
    item: RankFile,
    state: Mapping[str, Any],
    members: _Members,
    sizes: Sizes,
) -> None:
    inner = _inner(state)
    held = [part for chunk in item.chunks for part in chunk.parts]
    parts = _trained([part for part in held if members.has(part, sizes)])
    numbered = _numbered(parts, inner["param_groups"], item)
    masters = state.get("fp32_from_fp16_params")
    flat_masters = [ref for group in masters or () for ref in group]
    ids = [number for group in inner["param_groups"] for number in group["params"]]
    for position, number in enumerate(ids):
        tensors = {kind: inner["state"].get(number, {}).get(kind) for kind in STATE_NAMES}
        if position < len(flat_masters):
            tensors["main"] = flat_masters[position]
        for kind, ref in tensors.items():
            for part in numbered[number] if isinstance(ref, TensorRef) else ():
                _add(catalog, kind, part, item, item.file, ref, part.first, sizes)


def _trained(parts: list[Part]) -> list[Part]:
    """Parameters the optimizer knows: not the buffers of routers."""
    return [part for part in parts if part.spec.is_trained]


def _numbered(
    parts: list[Part], groups: Sequence[Mapping[str, Any]], item: RankFile
) -> dict[int, list[Part]]:
    """Number -> what a tensor holds: groups differ in decay, and hold them in the model's order."""
    kinds: dict[tuple[bool, bool], dict[tuple, list[Part]]] = {}
    are_decoupled = any(group.get("is_decoupled_lr") for group in groups)
    for part in parts:
        key = (
            has_decay(part.file_name, part.shape),
            are_decoupled and part.spec.is_vocabulary,
        )
        # Experts in one tensor are one parameter; the chunks of a rank all name layers from 0.
        of_kind = kinds.setdefault(key, {})
        of_kind.setdefault((names.layer_of(part.spec.name), part.file_name), []).append(part)
    numbered: dict[int, list[Part]] = {}
    for group in groups:
        decays = group.get("wd_mult", 1.0) != 0.0
        own = kinds.get((decays, bool(group.get("is_decoupled_lr"))), {}).values()
        if len(own) != len(group["params"]):
            raise ValueError(
                f"{item.file.path} numbers {len(group['params'])} parameters in a group with "
                f"weight decay {'on' if decays else 'off'}, but the model has {len(own)}; load it "
                "without its optimizer (--no-load-optim)"
            )
        numbered.update(zip(group["params"], own, strict=True))
    return numbered


def _add(  # noqa: PLR0913 - what a piece is made of
    catalog: Catalog,
    kind: str,
    part: Part,
    item: RankFile,
    file: TorchFile,
    ref: TensorRef,
    first: int,
    sizes: Sizes,
) -> None:
    shape, span = global_span(part, item.rank, sizes)
    piece = file.piece(ref, span, first, part.is_transposed)
    add_piece(catalog, f"{kind}.{part.spec.name}", shape, piece)


# --- flat buffers -----------------------------------------------------------------------------


def flat_starts(
    parts: Sequence[tuple[str, tuple[int, ...]]],
    args: Any,
    data_parallel: int,
    is_bucketed: bool,
    own_bucket: Iterable[str] = (),
) -> tuple[dict[str, int], int]:
    """First element of every parameter in a buffer as the file holds it, and its elements.

    The padding at the end of buckets is left out there.

    Args:
        parts: name and local shape in the order of the model.
        args: Megatron's arguments.
        data_parallel: ranks that share the optimizer.
        is_bucketed: whether this chunk is cut into buckets: the first one of the first stage.
        own_bucket: names of parameters with a bucket to themselves.
    """
    size = None
    if is_bucketed and names.get(args, "overlap_grad_reduce", False):
        size = names.get(args, "ddp_bucket_size") or default_bucket_size(data_parallel)
        count = names.get(args, "ddp_num_buckets")
        if count:
            size = max(1, sum(_count(shape) for _, shape in parts) // int(count))
    wide = bool(names.get(args, "ddp_pad_buckets_for_high_nccl_busbw", False))
    rules = LayoutRules(
        param_alignment=PARAM_ALIGNMENT,
        bucket_alignment=sharded_alignment(data_parallel, wide),
        bucket_size=size,
    )
    starts, position = {}, 0
    for bucket in buffer_layout(list(parts), rules, set(own_bucket)).buckets:
        for slot in bucket.slots:
            starts[slot.name] = position + slot.start - bucket.start
        position += bucket.slots[-1].end - bucket.start
    return starts, position


def _count(shape: Sequence[int]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total


def has_own_bucket(spec: ParamSpec, args: Any) -> bool:
    """Whether it is a table that two stages hold, which lies apart from the rest."""
    is_tied = not names.get(args, "untie_embeddings_and_output_weights", False)
    is_apart = int(names.get(args, "pipeline_model_parallel_size", 1)) > 1 and is_tied
    return is_apart and spec.is_vocabulary


def _add_flat(catalog: Catalog, item: RankFile, file: TorchFile, args: Any, sizes: Sizes) -> None:
    is_single = isinstance(file.content, Mapping) and "buckets_coalesced" in file.content
    whole = [(file.content, _Members())]
    for state, members in whole if is_single else _by_group(file.content):
        expert = members.expert
        if state is None:  # of an optimizer that another rank of its group has written
            continue
        buffers = [state[key] for key in sorted(key for key in state if isinstance(key, int))]
        for chunk, buffer in enumerate(buffers):
            if chunk >= len(item.chunks):
                raise ValueError(
                    f"{file.path} holds {len(buffers)} buffers for {len(item.chunks)} model chunks;"
                    " load the checkpoint without its optimizer (--no-load-optim)"
                )
            parts = _trained(_unique(item.chunks[chunk : chunk + 1], expert, sizes))
            _add_buffer(catalog, item, file, _Buffer(parts, buffer, args, chunk, expert), sizes)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """The buffer of one chunk."""

    parts: list[Part]
    content: Mapping[Any, Mapping[str, Any]]
    args: Any
    chunk: int
    expert: bool | None


def _add_buffer(
    catalog: Catalog, item: RankFile, file: TorchFile, buffer: _Buffer, sizes: Sizes
) -> None:
    ranks = int(names.get(buffer.args, "data_parallel_size", 1))
    ranks *= int(names.get(buffer.args, "context_parallel_size", 1))
    ranks //= int(names.get(buffer.args, "num_distributed_optimizer_instances", 1))
    if buffer.expert:
        ranks = max(1, ranks * sizes.tensor // (sizes.expert * sizes.expert_tensor))
    if len(buffer.content) != 1:
        raise ValueError(
            f"{file.path} holds buffers of {len(buffer.content)} types of numbers in one chunk; "
            "only one is supported: load the checkpoint without its optimizer (--no-load-optim)"
        )
    (((param_dtype, _), tensors),) = buffer.content.items()
    shapes = _tensors_of(buffer.parts)
    starts, size = flat_starts(
        shapes,
        buffer.args,
        ranks,
        is_bucketed=item.rank.pipeline == 0 and buffer.chunk == 0,
        own_bucket=[
            part.file_name for part in buffer.parts if has_own_bucket(part.spec, buffer.args)
        ],
    )
    if size != tensors["param"].shape[0]:
        raise ValueError(
            f"{file.path} holds {tensors['param'].shape[0]} numbers of a buffer that should have "
            f"{size}; its layout is unknown: load the checkpoint without its optimizer "
            "(--no-load-optim)"
        )
    _require_same_weights(item, file, buffer.parts, tensors["param"], starts)
    is_wide = str(param_dtype) in ("torch.float32", "torch.float")
    for part in buffer.parts:
        for kind in ("param", *STATE_NAMES):
            ref = tensors.get(kind)
            if isinstance(ref, TensorRef) and not (kind == "param" and is_wide):
                first = starts[part.file_name] + part.first
                key = "main" if kind == "param" else kind
                _add(catalog, key, part, item, file, ref, first, sizes)


_LOOKED_AT, _NUMBERS = 8, 256
"""Parameters of a buffer, and numbers of each."""


def _require_same_weights(
    item: RankFile,
    file: TorchFile,
    parts: Sequence[Part],
    main: TensorRef,
    starts: Mapping[str, int],
) -> None:
    """The fp32 weights are those of the model's file: else they are another rank's or save's.

    A few numbers of some parameters are read.
    """
    for part in parts[:: max(1, len(parts) // _LOOKED_AT)]:
        count = min(_NUMBERS, math.prod(part.shape))
        span = Span.all_of(Region.whole((count,)))
        weights = item.file.piece(part.ref, span, part.first)
        kept = file.piece(main, span, starts[part.file_name] + part.first)
        if kept.dtype != "F32" or weights.dtype not in dtypes.FLOATS or not part.ref.is_contiguous:
            continue
        with TensorReader() as reader:
            found, wide = (
                # The checksum of all of a buffer is compared when all of it is read.
                reader.read(StoredTensor((count,), one.dtype, [replace(one, checksum=None)]))
                for one in (weights, kept)
            )
        if not np.array_equal(found, dtypes.convert(wide, "F32", weights.dtype)):
            raise ValueError(
                f"{file.path} holds fp32 weights that are not those of {item.file.path} "
                f"({part.file_name}); they are of two ranks or two saves: copy the checkpoint again"
            )


def _tensors_of(parts: Sequence[Part]) -> list[tuple[str, tuple[int, ...]]]:
    """Tensors of the file in the order of the model, each once."""
    found: dict[str, tuple[int, ...]] = {}
    for part in parts:
        found.setdefault(part.file_name, part.ref.shape)
    return list(found.items())
