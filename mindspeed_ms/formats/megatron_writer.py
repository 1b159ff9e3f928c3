# SPDX-License-Identifier: Apache-2.0
"""Megatron-LM's ``torch`` checkpoints, written for any layout, one tensor at a time."""

from __future__ import annotations

import random
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mindspeed_ms.config.optimizer_config import SOAP_STATES, STATE_NAMES, STATES
from mindspeed_ms.formats import dtypes, names
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.formats.containers.torch_file import TorchDtype
from mindspeed_ms.formats.containers.torch_writer import TensorSpec, write_file
from mindspeed_ms.formats.megatron_optimizer import (
    OPTIMIZER_FILE,
    flat_starts,
    has_decay,
    has_own_bucket,
    is_muon_matrix,
)
from mindspeed_ms.formats.source import Source
from mindspeed_ms.models import ParamSpec
from mindspeed_ms.plan.layer_placement import LayerPlacement
from mindspeed_ms.plan.region import Span

Naming = Literal["local", "te", "legacy"]
Progress = Callable[[int], None]
"""Told the bytes of every tensor written."""

_ORDER = (
    *("input_layernorm", "self_attention.layer_norm_"),
    *("self_attention.weight", "self_attention.bias"),
    *("self_attention.dt_bias", "self_attention.A_log", "self_attention.in_proj"),
    *("self_attention.conv1d", "self_attention.out_norm", "self_attention.out_proj"),
    "self_attention.core_attention.softmax_offset",
    *(
        f"self_attention.core_attention.indexer.{name}"
        for name in ("linear_wq_b", "linear_wk", "k_norm", "linear_weights_proj")
    ),
    *("self_attention.linear_proj", "self_attention.linear_qkv"),
    *("self_attention.linear_q_proj", "self_attention.linear_q_down_proj"),
    *("self_attention.linear_q_up_proj", "self_attention.linear_kv_down_proj"),
    *("self_attention.linear_kv_up_proj", "self_attention.q_layernorm"),
    *("self_attention.k_layernorm", "self_attention.kv_layernorm", "post_self_attn_layernorm"),
    *("pre_mlp_layernorm", "mlp.router", "mlp.experts", "mlp.shared_experts", "mlp.linear_fc1"),
    *("mlp.linear_fc2", "mlp.layer_norm_", "mlp.weight", "mlp.bias", "post_mlp_layernorm"),
)
"""Modules of a layer in the order of Megatron-core's own construction."""

_BEHIND = {
    "input_layernorm": (
        *("self_attention.linear_qkv", "self_attention.in_proj", "self_attention"),
    ),
    "pre_mlp_layernorm": ("mlp.linear_fc1", "mlp"),
    "q_layernorm": ("linear_q_up_proj",),
    "kv_layernorm": ("linear_kv_up_proj",),
}
"""Norm -> matrices with which Transformer Engine computes it, if they are there."""

_LEGACY = (
    (r"^embedding\.", "language_model.embedding."),
    (r"^decoder\.final_layernorm\.", "language_model.encoder.final_norm."),
    (r"^decoder\.", "language_model.encoder."),
    (r"^output_layer\.", "language_model.output_layer."),
    (r"\.input_layernorm\.", ".input_norm."),
    (r"\.pre_mlp_layernorm\.", ".post_attention_norm."),
    (r"\.linear_qkv\.", ".query_key_value."),
    (r"\.self_attention\.linear_proj\.", ".self_attention.dense."),
    (r"\.linear_fc1\.", ".dense_h_to_4h."),
    (r"\.linear_fc2\.", ".dense_4h_to_h."),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MegatronTarget:
    """Layout and naming of what is written."""

    placement: LayerPlacement
    tensor: int = 1
    expert: int = 1
    num_experts: int = 0
    naming: Naming = "local"
    distributed_optimizer: bool = False
    data_parallel: int = 1
    with_optimizer: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron's arguments of the model, and of the run as far as they are known."""


@dataclass(frozen=True, slots=True)
class _Param:
    """A parameter of one rank."""

    spec: ParamSpec
    """The whole one, under the name its values have in the source."""
    file_name: str
    shape: tuple[int, ...]
    span: Span

    @property
    def name(self) -> str:
        """Here."""
        return self.spec.name


class MegatronWriter:
    """Writes a checkpoint.

    Args:
        source: what is converted.
        target: layout and naming.
        progress: told the bytes written.
    """

    def __init__(self, source: Source, target: MegatronTarget, progress: Progress) -> None:
        self._source, self._target, self._progress = source, target, progress
        self._spec = source.spec
        self._common = source.catalog.common
        self._files = storage.NewFiles()
        self._args = self._arguments()
        held = [source.kinds(name) for name in source.weights]
        self._has_state = target.with_optimizer and any(held)
        if target.with_optimizer and any(
            SOAP_STATES.keys() & kinds - {*STATES["adamw"]} for kinds in map(set, held)
        ):
            raise ValueError(
                f"{source.catalog.source} holds states of soap, which are of whole matrices and "
                "have no place in Megatron's files; convert the weights with --no-optimizer"
            )

        moments = {kind for kinds in held for kind in kinds}
        self._is_muon = {"momentum_buffer", "exp_avg"} <= moments
        if self._is_muon and target.with_optimizer and target.distributed_optimizer:
            raise ValueError(
                f"{source.catalog.source} holds states of muon, which Megatron keeps by parameter "
                "and not in flat buffers; convert with --no-use-distributed-optimizer"
            )

    def write(self, root: Path) -> Path:
        """Write all ranks and the marker; return the checkpoint's folder."""
        target, iteration = self._target, int(self._common.get("iteration", 0))
        folder = storage.iteration_folder(root, iteration)
        with self._files:
            for expert in range(target.expert):
                for stage in range(target.placement.num_stages):
                    for tensor in range(target.tensor):
                        name = f"mp_rank_{tensor:02d}"
                        name += f"_{stage:03d}" if target.placement.num_stages > 1 else ""
                        name += f"_{expert:03d}" if target.expert > 1 else ""
                        self._write_rank(folder / name, tensor, stage, expert)
            self._files.replaces(sorted(folder.glob("mp_rank_*/*.pt")))
        storage.set_latest(root, iteration)
        return folder

    def _write_rank(self, folder: Path, tensor: int, stage: int, expert: int) -> None:
        chunks = [
            self._parameters(tensor, stage, chunk, expert)
            for chunk in range(self._target.placement.num_chunks)
        ]
        content: dict[str, Any] = {
            "args": self._arguments_of(tensor, stage, expert),
            "checkpoint_version": 3.0,
            "iteration": int(self._common.get("iteration", 0)),
        }
        for number, params in enumerate(chunks):
            key = "model" if len(chunks) == 1 else f"model{number}"
            is_last = stage == self._target.placement.num_stages - 1 and number == len(chunks) - 1
            content[key] = self._state_dict(params, is_last)
        if self._has_state:
            groups = self._optimizers(chunks)
            states = [self._optimizer_state(params) for params in groups]
            content["optimizer"] = states[0] if len(states) == 1 else states
            content["opt_param_scheduler"] = self._common.get("scheduler") or {}
            content["rng_state"] = [_rng_state(int(getattr(self._args, "seed", 1234) or 1234))]
        content["num_floating_point_operations_so_far"] = 0.0
        self._put(folder / "model_optim_rng.pt", content)
        if self._has_state and self._target.distributed_optimizer:
            buffers = self._flat_states(chunks, stage)
            self._put(folder / OPTIMIZER_FILE, buffers[0] if len(buffers) == 1 else buffers)

    def _put(self, path: Path, content: Any) -> None:
        write_file(self._files.partial(path), content)

    # --- parameters ---------------------------------------------------------------------------

    def _parameters(self, tensor: int, stage: int, chunk: int, expert: int) -> list[_Param]:
        """Parameters of one chunk of a rank in Megatron's order."""
        placement, spec = self._target.placement, self._spec
        layers = {number: index for index, number in enumerate(placement.layers_of(stage, chunk))}
        experts = range(expert * self._experts_per_rank, (expert + 1) * self._experts_per_rank)
        is_first = stage == 0 and chunk == 0
        is_last = stage == placement.num_stages - 1 and chunk == placement.num_chunks - 1
        mine = list(spec.before_layers()) if is_first else []
        for number in layers:
            mine += spec.of_layer(number, experts)
        if is_last:
            mine += spec.behind_layers(experts)
        params = [self._param(one, layers, tensor, expert) for one in mine]
        if is_last and not is_first and spec.is_tied:
            params.append(self._copy_of_embedding(tensor, self._tied_head_name()))
        if is_last and not is_first and spec.further:
            name = self._file_name(spec.table.megatron_name)  # what further tokens are looked up in
            params.append(self._copy_of_embedding(tensor, name))
        return sorted(params, key=lambda param: self._place(param.file_name))

    @property
    def _experts_per_rank(self) -> int:
        return max(1, self._target.num_experts // self._target.expert)

    def _param(self, spec: ParamSpec, layers: dict[int, int], tensor: int, expert: int) -> _Param:
        local = self._file_name(spec.megatron_name)
        layer = names.layer_of(spec.megatron_name)
        if layer is not None:
            local = names.with_layer(local, layers[layer])
        if spec.expert is not None:
            local = names.with_expert(local, spec.expert - expert * self._experts_per_rank)
        span = self._source.span(spec, tensor, self._target.tensor)
        return _Param(spec, local, span.region.shape, span)

    def _tied_head_name(self) -> str:
        is_legacy = self._target.naming == "legacy"
        return "word_embeddings_for_head.weight" if is_legacy else "output_layer.weight"

    def _copy_of_embedding(self, tensor: int, file_name: str) -> _Param:
        table = self._spec.table
        span = self._source.span(table, tensor, self._target.tensor)
        return _Param(table, file_name, span.region.shape, span)

    def _file_name(self, name: str) -> str:
        """The name in the naming that is asked for."""
        if self._target.naming == "te":
            name = self._fused(name)
        elif self._target.naming == "legacy":
            for pattern, replacement in _LEGACY:
                name = re.sub(pattern, replacement, name)
        return name

    def _fused(self, name: str) -> str:
        """Transformer Engine's name of a norm: that of the matrix behind it, if one is alone there.

        Norms before several matrices, or before a router, keep their own.
        """
        for norm, matrices in _BEHIND.items():
            prefix, found, last = name.rpartition(f".{norm}.")
            for matrix in matrices if found else ():
                if f"{prefix}.{matrix}.weight" in self._spec.by_megatron_name:
                    return f"{prefix}.{matrix}.layer_norm_{last}"
        return name

    def _place(self, file_name: str) -> tuple:
        """Sort key: the order in which Megatron builds the model."""
        if self._target.naming == "legacy":
            file_name = names.current_name(file_name)
        decoder = re.match(r"decoder\.layers\.(\d+)\.(.*)", file_name)
        if decoder is not None:
            return (1, int(decoder[1]), *self._place_in_layer(decoder[2]))
        further = re.match(r"mtp\.layers\.(\d+)\.((\w+)\..*)", file_name)
        if further is not None:
            parts = ("enorm", "hnorm", "eh_proj", "transformer_layer", "final_layernorm")
            rest = further[2].removeprefix("transformer_layer.")
            place = parts.index(further[3]) if further[3] in parts else len(parts)
            return (3, int(further[1]), place, *self._place_in_layer(rest))
        head = ("embedding.word", "embedding.", "decoder.final", "output_layer")
        place = next((i for i, start in enumerate(head) if file_name.startswith(start)), 4)
        is_norm = ".norm." in file_name  # of embeddings, behind their table
        return ((0, 0, 2, 4, 5)[place], place, is_norm, file_name.endswith("bias"), file_name)

    def _place_in_layer(self, rest: str) -> tuple:
        """The same for the parameters of one layer, by the part of the name behind its number."""
        module = next((i for i, start in enumerate(_ORDER) if rest.startswith(start)), 99)
        output = _ORDER.index("self_attention.linear_proj")
        if self._target.naming == "legacy" and module in (output, output + 1):
            # The older model built the query before the output projection.
            module = 2 * output + 1 - module
        numbers = tuple(int(text) for text in re.findall(r"local_experts\.(\d+)", rest))
        norm_first = 0 if "layer_norm_" in rest else 1
        inner = 1 if "linear_fc2" in rest else 0
        return (module, numbers, inner, norm_first, rest.endswith("bias"), rest)

    def _state_dict(self, params: Sequence[_Param], is_last: bool) -> dict[str, Any]:
        flat: OrderedDict[str, Any] = OrderedDict()
        linear = re.compile(r"(linear_\w+|eh_proj|query_key_value|dense\w*)\.(weight|bias)$")
        for param in params:
            flat[param.file_name] = self._tensor(param, "")
            if linear.search(param.file_name) and "layer_norm_" not in param.file_name:
                stem = param.file_name.rpartition(".")[0]
                flat.pop(f"{stem}._extra_state", None)
                flat[f"{stem}._extra_state"] = None
        if is_last:
            head = (
                "language_model.output_layer"
                if self._target.naming == "legacy"
                else ("output_layer")
            )
            if self._target.naming != "legacy" or f"{head}.weight" in flat:
                flat[f"{head}._extra_state"] = None
        return _nested(flat) if self._target.naming == "legacy" else flat

    def _tensor(self, param: _Param, kind: str) -> TensorSpec:
        dtype = self._source.dtype(param.name, kind)
        return TensorSpec(dtype, param.shape, partial(self._values, param, kind))

    def _values(self, param: _Param, kind: str) -> Iterator[np.ndarray]:
        array = self._source.read(param.name, kind, param.span)
        yield array
        self._progress(array.nbytes)

    # --- optimizer ----------------------------------------------------------------------------

    def _optimizers(self, chunks: Sequence[Sequence[_Param]]) -> list[list[_Param]]:
        """Parameters of each chained optimizer: experts have their own when they are spread."""
        params = [param for chunk in chunks for param in chunk if param.spec.is_trained]
        if self._is_muon:
            chained = [
                [
                    one
                    for one in params
                    if is_muon_matrix(one.spec) == by_muon
                    and (self._target.expert == 1 or (one.spec.expert is not None) == is_expert)
                ]
                for by_muon in (True, False)
                for is_expert in ((False, True) if self._target.expert > 1 else (False,))
            ]
            return [group for group in chained if group]
        if self._target.expert == 1:
            return [params]
        dense = [param for param in params if param.spec.expert is None]
        return [dense, [param for param in params if param.spec.expert is not None]]

    def _optimizer_state(self, params: Sequence[_Param]) -> dict[str, Any]:
        groups: dict[float, list[_Param]] = {}
        for param in params:
            decay = 1.0 if has_decay(param.file_name, param.shape) else 0.0
            groups.setdefault(decay, []).append(param)
        is_expert = any(param.spec.expert is not None for param in params)
        step = float((self._common.get("optimizer") or {}).get("num_steps", 0))
        state: dict[int, Any] = {}
        listed, masters = [], []
        for decay, members in groups.items():
            group = self._group(decay, is_expert)
            if self._target.distributed_optimizer:
                group["step"] = step
            else:
                group["params"] = list(range(len(state), len(state) + len(members)))
                for param in members:
                    state[len(state)] = self._moments(param, step)
                masters.append([self._tensor(param, "main") for param in members])
            listed.append(group)
        inner: dict[str, Any] = {"param_groups": listed}
        is_wide = self._source.dtype(names.EMBEDDING) == "F32"
        if self._target.distributed_optimizer:
            result: dict[str, Any] = {"optimizer": inner}
        else:
            inner = {"state": state, **inner}
            result = {"optimizer": inner, "fp32_from_fp16_params": masters}
            if is_wide:
                return inner
        scaler = (self._common.get("optimizer") or {}).get("grad_scaler")
        if scaler:
            result["grad_scaler"] = {
                "scale": TensorSpec.of(np.array([scaler["scale"]], np.float32)),
                "growth_tracker": int(scaler["growth_tracker"]),
                "hysteresis_tracker": int(scaler["hysteresis_tracker"]),
            }
        return result

    def _moments(self, param: _Param, step: float) -> dict[str, TensorSpec]:
        moments = {
            kind: self._tensor(param, kind)
            for kind in STATE_NAMES
            if kind in self._source.kinds(param.name)
        }
        return {"step": TensorSpec.of(np.array(step, np.float32)), **moments}

    def _group(self, decay: float, is_expert: bool) -> dict[str, Any]:
        args = self._args
        scheduler = self._common.get("scheduler") or {}
        rate = float(scheduler.get("max_lr") or getattr(args, "lr", None) or 0.0)
        return {
            "wd_mult": decay,
            "lr_mult": 1.0,
            "is_expert_parallel": is_expert and self._target.expert > 1,
            "is_decoupled_lr": False,
            "max_lr": rate,
            "min_lr": float(scheduler.get("min_lr") or 0.0),
            "lr": rate,
            "betas": (
                float(getattr(args, "adam_beta1", None) or 0.9),
                float(getattr(args, "adam_beta2", None) or 0.999),
            ),
            "eps": float(getattr(args, "adam_eps", None) or 1e-8),
            "weight_decay": float(scheduler.get("end_wd") or 0.0) * decay,
            "amsgrad": False,
            "maximize": False,
            "foreach": None,
            "capturable": False,
            "differentiable": False,
            "fused": None,
            "decoupled_weight_decay": True,
        }

    def _flat_states(self, chunks: Sequence[Sequence[_Param]], stage: int) -> list[dict]:
        """Content of ``distrib_optim.pt``, one for each chained optimizer."""
        is_apart = self._target.expert > 1
        kinds = (False, True) if is_apart else (None,)
        states = []
        for expert in kinds:
            state: dict[Any, Any] = {"buckets_coalesced": True}
            for number, params in enumerate(chunks):
                members = [
                    param
                    for param in params
                    if param.spec.is_trained
                    and (expert is None or (param.spec.expert is not None) == expert)
                ]
                if members:
                    state[number] = self._buffer(members, stage == 0 and number == 0)
            states.append(state)
        return states

    def _buffer(self, params: Sequence[_Param], is_bucketed: bool) -> dict:
        shapes = [(param.file_name, param.shape) for param in params]
        vocabulary = [p.file_name for p in params if has_own_bucket(p.spec, self._args)]
        starts, size = flat_starts(
            shapes, self._args, self._target.data_parallel, is_bucketed, vocabulary
        )
        ordered = sorted(params, key=lambda param: starts[param.file_name])
        dtype = TorchDtype(dtypes.WORDS[self._source.dtype(params[0].name)])
        is_wide = dtype.name == "float32"
        kinds = {"param": "" if is_wide else "main", **{kind: kind for kind in STATES["adamw"]}}
        tensors: dict[str, Any] = {
            key: TensorSpec("F32", (size,), partial(self._flat, ordered, starts, size, kind))
            for key, kind in kinds.items()
        }
        grads = TorchDtype(
            "bfloat16" if getattr(self._args, "grad_reduce_in_bf16", False) else ("float32")
        )
        return {(dtype, grads): {**tensors, "numel_unpadded": size}}

    def _flat(
        self, params: Sequence[_Param], starts: dict[str, int], size: int, kind: str
    ) -> Iterator[np.ndarray]:
        position = 0
        for param in params:
            gap = starts[param.file_name] - position
            if gap:
                yield np.zeros(gap, np.float32)
            (array,) = self._values(param, kind)
            yield array
            position += gap + array.size
        if position < size:
            yield np.zeros(size - position, np.float32)

    # --- arguments ----------------------------------------------------------------------------

    def _arguments_of(self, tensor: int, stage: int, expert: int) -> Namespace:
        """With the rank that would save the file, which tells files apart."""
        target = self._target
        data = max(target.data_parallel, target.expert)
        rank = tensor + target.tensor * (expert + data * stage)
        size = target.tensor * data * target.placement.num_stages
        return Namespace(**{**vars(self._args), "rank": rank, "world_size": size})

    def _arguments(self) -> Namespace:
        target, placement = self._target, self._target.placement
        known = {
            key: value
            for key, value in target.arguments.items()
            if not (isinstance(value, str) and value.startswith("<"))
        }
        chunks = placement.num_chunks
        dtype = dtypes.WORDS.get(self._source.dtype(names.EMBEDDING), "float32")
        stages = placement.num_stages
        known.update(
            {
                "padded_vocab_size": self._source.shape(names.EMBEDDING)[0],
                "tensor_model_parallel_size": target.tensor,
                "pipeline_model_parallel_size": stages,
                "transformer_pipeline_model_parallel_size": stages,
                "virtual_pipeline_model_parallel_size": chunks if chunks > 1 else None,
                "num_layers_per_virtual_pipeline_stage": (
                    len(placement.layers_of(0, 0)) if chunks > 1 else None
                ),
                "expert_model_parallel_size": target.expert,
                "expert_tensor_parallel_size": target.tensor,
                "data_parallel_size": target.data_parallel,
                "context_parallel_size": 1,
                "num_distributed_optimizer_instances": 1,
                "use_distributed_optimizer": target.distributed_optimizer,
                "params_dtype": TorchDtype(dtype),
                "bf16": dtype == "bfloat16",
                "fp16": dtype == "float16",
                "use_legacy_models": target.naming == "legacy",
                "transformer_impl": ("transformer_engine" if target.naming == "te" else "local"),
                "consumed_train_samples": int(self._common.get("consumed_train_samples") or 0),
                "consumed_valid_samples": int(self._common.get("consumed_valid_samples") or 0),
                "iteration": int(self._common.get("iteration", 0)),
            }
        )
        for name in ("overlap_grad_reduce", "ddp_bucket_size", "ddp_num_buckets"):
            known.setdefault(name, None)
        return Namespace(**{key: _from_plain(value) for key, value in known.items()})


def _from_plain(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("torch."):
        return TorchDtype(value.removeprefix("torch."))
    return value


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The older model's nesting: only the parts above the layers are dictionaries."""
    root: OrderedDict[str, Any] = OrderedDict()
    for name, value in flat.items():
        parts = name.split(".")
        depth = 2 if parts[1] in ("encoder", "output_layer") else len(parts) - 1
        place: Any = root
        for part in parts[:depth]:
            place = place.setdefault(part, OrderedDict())
        place[".".join(parts[depth:])] = value
    return root


def _rng_state(seed: int) -> dict[str, Any]:
    """Generators as a run with this seed starts them: Megatron does not resume without any."""
    words = _mersenne_words(seed)
    version, state, gauss = random.Random(seed).getstate()
    torch_state = _torch_generator(seed, words)
    return {
        "random_rng_state": (version, tuple(state), gauss),
        "np_rng_state": ("MT19937", np.asarray(words, np.uint32), 624, 0, 0.0),
        "torch_rng_state": torch_state,
        "cuda_rng_state": torch_state,
        "rng_tracker_states": {
            name: _torch_generator(start, _mersenne_words(start))
            for name, start in (
                ("data-parallel-rng", seed),
                ("model-parallel-rng", seed + 2718),
                ("expert-parallel-rng", seed + 1024),
            )
        },
    }


def _mersenne_words(seed: int) -> Any:
    """State words of the Mersenne twister after seeding, 624 of them."""
    state: Any = np.random.RandomState(seed % 2**32).get_state()
    return state[1]


def _torch_generator(seed: int, words: Any) -> TensorSpec:
    """State of torch's CPU generator after ``manual_seed``.

    Source: PyTorch ``CPUGeneratorImplStateLegacy`` (fields and their order).
    """
    head = np.zeros(
        1, np.dtype([("seed", "<u8"), ("left", "<i4"), ("seeded", "<i4"), ("at", "<u8")])
    )
    head["seed"], head["left"], head["seeded"] = seed, 1, 1
    data = head.tobytes() + np.asarray(words, "<u8").tobytes()
    return TensorSpec.of(np.frombuffer(data.ljust(5056, b"\0"), np.uint8))
