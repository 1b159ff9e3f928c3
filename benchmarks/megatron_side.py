# SPDX-License-Identifier: Apache-2.0
"""Megatron core's side of ``vs_megatron.py``: its own model, schedules and optimizer, on CPU.

Runs in an interpreter with torch and megatron-core, and imports nothing of this project. That
package is written for CUDA; ``pretend_cuda`` answers its questions about the device and changes
nothing else. What is left out is what a run of Megatron-LM on CPU leaves out: Transformer Engine,
and fusions that need CUDA kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from turns import Turn


def _on_cpu(make: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
    if kwargs.get("device") == "cuda":
        kwargs["device"] = "cpu"
    return make(*args, **kwargs)


def pretend_cuda() -> None:
    """Let the CPU answer what Megatron asks of CUDA; called before Megatron is imported."""
    cpu, type_of = torch.device("cpu"), torch.Tensor.type
    torch.cuda.current_device = lambda: cpu
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.manual_seed = torch.manual_seed
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    torch.Tensor.type = lambda tensor, *args: (
        type_of(tensor, *args) if args else type_of(tensor).replace("torch.", "torch.cuda.", 1)
    )
    for name in ("tensor", "zeros", "ones"):
        setattr(torch, name, partial(_on_cpu, getattr(torch, name)))
    from megatron.core.optimizer import distrib_optimizer
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # It refuses without Transformer Engine even where no parameter is FP8.
    distrib_optimizer.quantize_param_shard = lambda *_, **__: None


def parse(flags: list[str]) -> argparse.Namespace:
    """Megatron's flags, as far as a model and its layout need them; others are ignored."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in (
        "num-layers hidden-size ffn-hidden-size num-attention-heads num-query-groups seq-length "
        "padded-vocab-size micro-batch-size global-batch-size num-experts moe-ffn-hidden-size "
        "moe-router-topk recompute-num-layers num-layers-per-virtual-pipeline-stage"
    ).split():
        parser.add_argument(f"--{name}", type=int)
    for name in ("tensor-model-parallel-size", "pipeline-model-parallel-size"):
        parser.add_argument(f"--{name}", type=int, default=1)
    for name in (
        "sequence-parallel use-distributed-optimizer overlap-grad-reduce bf16 swiglu "
        "disable-bias-linear untie-embeddings-and-output-weights"
    ).split():
        parser.add_argument(f"--{name}", action="store_true")
    for name, value in {
        "lr": 1e-4,
        "weight-decay": 0.01,
        "adam-beta1": 0.9,
        "adam-beta2": 0.999,
        "adam-eps": 1e-8,
        "clip-grad": 1.0,
        "norm-epsilon": 1e-5,
        "init-method-std": 0.02,
        "attention-dropout": 0.1,
        "hidden-dropout": 0.1,
        "moe-aux-loss-coeff": 0.0,
    }.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    for name, text in {
        "normalization": "LayerNorm",
        "position-embedding-type": "learned_absolute",
        "moe-token-dispatcher-type": "allgather",
        "moe-router-load-balancing-type": "aux_loss",
        "recompute-granularity": None,
        "recompute-method": None,
    }.items():
        parser.add_argument(f"--{name}", default=text)
    return parser.parse_known_args(flags)[0]


def more_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of the configuration that only some shapes have."""
    options: dict[str, Any] = {}
    if args.swiglu:
        options |= {"gated_linear_unit": True, "activation_func": torch.nn.functional.silu}
    if args.num_experts:
        options |= {
            "num_moe_experts": args.num_experts,
            "moe_router_topk": args.moe_router_topk,
            "moe_ffn_hidden_size": args.moe_ffn_hidden_size,
            "moe_token_dispatcher_type": args.moe_token_dispatcher_type,
            "moe_router_load_balancing_type": args.moe_router_load_balancing_type,
            "moe_aux_loss_coeff": args.moe_aux_loss_coeff,
        }
    if args.recompute_granularity:
        options |= {
            "recompute_granularity": args.recompute_granularity,
            "recompute_method": args.recompute_method,
            "recompute_num_layers": args.recompute_num_layers,
        }
    if args.num_layers_per_virtual_pipeline_stage:
        options["virtual_pipeline_model_parallel_size"] = virtual_stages(args)
    return options


def virtual_stages(args: argparse.Namespace) -> int | None:
    """Chunks of the model on every pipeline rank; None: one."""
    layers = args.num_layers_per_virtual_pipeline_stage
    return layers and args.num_layers // args.pipeline_model_parallel_size // layers


class Trainer:
    """A model, its optimizer and one step over them."""

    def __init__(self, args: argparse.Namespace, rank: int, ranks: int) -> None:
        """Build everything; collective over all ranks."""
        from megatron.core import parallel_state, tensor_parallel
        from megatron.core.pipeline_parallel import get_forward_backward_func

        parallel_state.initialize_model_parallel(
            args.tensor_model_parallel_size,
            args.pipeline_model_parallel_size,
            virtual_stages(args),
        )
        tensor_parallel.model_parallel_cuda_manual_seed(1234)
        torch.manual_seed(1234)
        self.args, self.state = args, parallel_state
        self.data_ranks = parallel_state.get_data_parallel_world_size()
        whole = args.global_batch_size or args.micro_batch_size * self.data_ranks
        self.microbatches = whole // (args.micro_batch_size * self.data_ranks)
        self.tokens = whole * args.seq_length
        self.models, self.optimizer = self._build()
        self.run = get_forward_backward_func()
        shape = (1, 1, args.seq_length, args.seq_length)
        self.mask = torch.tril(torch.ones(shape)) < 0.5
        self.position_ids = torch.arange(args.seq_length).expand(args.micro_batch_size, -1)

    def _config(self) -> Any:
        from megatron.core.transformer import TransformerConfig

        args = self.args
        kind = torch.bfloat16 if args.bf16 else torch.float32
        return TransformerConfig(
            num_layers=args.num_layers,
            hidden_size=args.hidden_size,
            ffn_hidden_size=args.ffn_hidden_size,
            num_attention_heads=args.num_attention_heads,
            num_query_groups=args.num_query_groups,
            normalization=args.normalization,
            layernorm_epsilon=args.norm_epsilon,
            add_bias_linear=not args.disable_bias_linear,
            attention_dropout=args.attention_dropout,
            hidden_dropout=args.hidden_dropout,
            init_method_std=args.init_method_std,
            use_cpu_initialization=True,
            bf16=args.bf16,
            params_dtype=kind,
            pipeline_dtype=kind,
            tensor_model_parallel_size=args.tensor_model_parallel_size,
            pipeline_model_parallel_size=args.pipeline_model_parallel_size,
            sequence_parallel=args.sequence_parallel,
            deallocate_pipeline_outputs=True,
            batch_p2p_comm=True,
            bias_activation_fusion=False,
            bias_dropout_fusion=False,
            masked_softmax_fusion=False,
            gradient_accumulation_fusion=False,
            apply_rope_fusion=False,
            persist_layer_norm=False,
            **more_options(args),
        )

    def _build(self) -> tuple[Any, Any]:
        from megatron.core.distributed import (
            DistributedDataParallel,
            DistributedDataParallelConfig,
            finalize_model_grads,
        )
        from megatron.core.models.gpt import GPTModel
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
        from megatron.core.transformer.module import Float16Module

        args, config = self.args, self._config()
        wrapped = []
        for chunk in range(virtual_stages(args) or 1):
            if virtual_stages(args):
                self.state.set_virtual_pipeline_model_parallel_rank(chunk)
            self.bare_model = model = GPTModel(
                config=config,
                transformer_layer_spec=_layers(config),
                vocab_size=args.padded_vocab_size,
                max_sequence_length=args.seq_length,
                pre_process=self.state.is_pipeline_first_stage(ignore_virtual=False),
                post_process=self.state.is_pipeline_last_stage(ignore_virtual=False),
                position_embedding_type=args.position_embedding_type,
                share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
            )
            if args.bf16:
                model = Float16Module(config, model)
            wrapped.append(
                DistributedDataParallel(
                    config,
                    DistributedDataParallelConfig(
                        grad_reduce_in_fp32=args.bf16,
                        use_distributed_optimizer=args.use_distributed_optimizer,
                        overlap_grad_reduce=args.overlap_grad_reduce,
                        check_for_nan_in_grad=True,
                    ),
                    model,
                )
            )
        optimizer = get_megatron_optimizer(
            OptimizerConfig(
                lr=args.lr,
                weight_decay=args.weight_decay,
                adam_beta1=args.adam_beta1,
                adam_beta2=args.adam_beta2,
                adam_eps=args.adam_eps,
                clip_grad=args.clip_grad,
                bf16=args.bf16,
                params_dtype=config.params_dtype,
                use_distributed_optimizer=args.use_distributed_optimizer,
            ),
            wrapped,
        )
        for group in optimizer.param_groups:  # what the scheduler of the training script does
            group["weight_decay"] = args.weight_decay * group["wd_mult"]
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = optimizer.scale_loss
        return wrapped, optimizer

    def made_up_tokens(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(tokens, labels, loss mask) of micro-batches without end."""
        size = (self.args.micro_batch_size, self.args.seq_length + 1)
        ones = torch.ones(size[0], size[1] - 1)
        while True:
            text = torch.randint(0, self.args.padded_vocab_size, size)
            yield text[:, :-1].contiguous(), text[:, 1:].contiguous(), ones

    def step(self, feed: Iterator) -> tuple[float, float]:
        """Train one global batch; returns loss (nan except on the last stage) and norm."""
        for model in self.models:
            model.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = self.run(
            forward_step_func=self._forward,
            data_iterator=[feed] * len(self.models) if len(self.models) > 1 else feed,
            model=self.models,
            num_microbatches=self.microbatches,
            seq_length=self.args.seq_length,
            micro_batch_size=self.args.micro_batch_size,
            decoder_seq_length=self.args.seq_length,
            forward_only=False,
        )
        _, norm, _ = self.optimizer.step()
        losses = [float(total / count) for total, count in reports]
        return sum(losses) / len(losses) if losses else float("nan"), float(norm)

    def _forward(self, feed: Iterator, model: Any) -> tuple[torch.Tensor, Callable]:
        tokens, labels, mask = next(feed)
        output = model(tokens, self.position_ids, self.mask, labels=labels)
        return output, partial(self._loss, mask)

    def _loss(self, mask: torch.Tensor, output: torch.Tensor) -> tuple[Any, Any, Any]:
        weights = mask.view(-1).float()
        sums = torch.stack((torch.sum(output.float().view(-1) * weights), weights.sum()))
        report = sums.detach().clone()
        torch.distributed.all_reduce(report, group=self.state.get_data_parallel_group())
        return sums[0].clone(), sums[1].detach().to(torch.int), report


def _layers(config: Any) -> Any:
    """The layers without Transformer Engine, with norms that know of sequence parallelism."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_block import (
        TransformerBlockSubmodules,
        get_num_layers_to_build,
    )

    class Norm(torch.nn.RMSNorm):
        def __init__(self, config: Any, hidden_size: int, eps: float) -> None:
            super().__init__(hidden_size, eps)
            self.weight.sequence_parallel = config.sequence_parallel

    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, normalization=config.normalization
    )
    layers = [layer] * get_num_layers_to_build(config)
    if config.normalization == "LayerNorm":
        norm = layer.submodules.input_layernorm
    else:
        norm = layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=norm)


def load_weights(trainer: Trainer, weights: dict[str, np.ndarray]) -> None:
    """Give this rank its slices of one-rank weights; a gated matrix is cut in each half."""
    size = trainer.state.get_tensor_model_parallel_world_size()
    rank = trainer.state.get_tensor_model_parallel_rank()
    decoder = trainer.bare_model.decoder
    with torch.no_grad():
        for name, parameter in trainer.bare_model.named_parameters():
            words = name.split(".")
            if words[1] == "layers":
                words[2] = str(decoder.layers[int(words[2])].layer_number - 1)
            whole = torch.from_numpy(weights[".".join(words)])
            if size > 1 and getattr(parameter, "tensor_model_parallel", False):
                halves = whole.chunk(2) if "linear_fc1" in name else (whole,)
                dim = parameter.partition_dim
                whole = torch.cat([half.chunk(size, dim)[rank] for half in halves], dim)
            parameter.copy_(whole)
    trainer.optimizer.reload_model_params()


def recorded_batches(folder: Path, cache: Path, args: argparse.Namespace, samples: int) -> Iterator:
    """Batches of the recorded token file, in the order of Megatron's own dataset.

    Its construction is collective over all ranks. Indices are written to ``cache``.
    """
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.parallel_state import get_data_parallel_rank, get_data_parallel_world_size

    found = sorted(folder.rglob("corpus_text_document.bin"))
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=args.seq_length,
        blend=([str(found[0].with_suffix(""))], None),
        split="100,0,0",
        path_to_cache=str(cache),
        tokenizer=SimpleNamespace(eod=-1, pad=-1, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    build = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build
    data, size = build()[0], args.micro_batch_size
    first, stride = size * get_data_parallel_rank(), size * get_data_parallel_world_size()
    return (
        tuple(
            torch.stack([data[start + index][name] for index in range(size)])
            for name in ("tokens", "labels", "loss_mask")
        )
        for start in range(first, samples, stride)
    )


def replay(trainer: Trainer, folder: Path, cache: Path, case: str) -> dict[str, float]:
    """Train on recorded data; returns the largest differences from the recorded run."""
    run = json.loads((folder / "runs" / f"{case}.json").read_text())
    load_weights(trainer, dict(np.load(folder / "weights_npz" / f"{case}_iter_0000000.npz")))
    samples = len(run["lm_loss"]) * trainer.args.global_batch_size
    feed = recorded_batches(folder, cache, trainer.args, samples)
    worst = {"loss": 0.0, "grad_norm": 0.0}
    rates = [0.0, *run["learning_rate"][:-1]]  # the log has the rate of the coming iteration
    for rate, recorded, recorded_norm in zip(rates, run["lm_loss"], run["grad_norm"], strict=True):
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate
        loss, norm = trainer.step(feed)
        if loss == loss:
            worst["loss"] = max(worst["loss"], abs(loss - recorded))
        worst["grad_norm"] = max(worst["grad_norm"], abs(norm - recorded_norm) / recorded_norm)
    return worst


def main() -> None:
    """Serve the tool, or replay a recorded run."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("rank", "ranks", "threads", "port"):
        parser.add_argument(f"--{name}", type=int, required=name != "port")
    parser.add_argument("--store", required=True, help="file by which the ranks find each other")
    parser.add_argument("--golden", type=Path)
    own, flags = parser.parse_known_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(own.threads)
    pretend_cuda()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{own.store}", rank=own.rank, world_size=own.ranks
    )
    trainer = Trainer(parse(flags), own.rank, own.ranks)
    if own.golden is not None:
        worst = replay(trainer, own.golden, Path(own.store).parent / "cache", "b_llama_hot")
        sys.stdout.write(json.dumps(worst) + "\n")
        return
    turn, feed = Turn(own.port, own.rank), trainer.made_up_tokens()
    while True:
        turn.wait()
        loss, _ = trainer.step(feed)
        turn.answer(loss=loss)


if __name__ == "__main__":
    main()
