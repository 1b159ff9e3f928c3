# SPDX-License-Identifier: Apache-2.0
"""What each row of the guide's five tables changes: short runs with and without it, side by side.

``python tests/guide_rows.py`` writes ``docs/guide_rows.md``; ``tests/ranks/test_rows_by_effect.py``
runs every row and checks that the document says what was seen.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import run_builder
from dist import RankPools
from ranks.test_planned_memory import kept_worker

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.config import without_effect
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.num_microbatches_calculator import get_num_microbatches
from mindspeed_ms.engine.run import Run, StepFunctions

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "guide_rows.md"

SENDING = (
    *("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"),
    *("batch_isend_irecv", "broadcast"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One argument of the guide, and two runs that differ in it."""

    flag: str
    on: str = ""
    off: str = ""
    sees: str = ""
    """What differs, one of the keys of ``observe``; empty: nothing does on this device."""
    style: str = "llama"
    ranks: int = 1
    before: str = ""
    """A run that comes first and leaves its checkpoint in {out}."""
    says: str = ""
    """Part of the line that says why nothing differs."""
    shown: str = ""
    """A test elsewhere that shows the effect, as path::name."""
    note: str = ""


def observe(words: str, row: Row, folder: str) -> dict[str, Any]:
    """Train as the words say; everything that a row may change, as plain values."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("mindspeed_ms.lines")
    logger.addHandler(handler)
    reports = []
    flags = words.replace("{out}", folder).split()
    config = run_builder.configuration(*flags, style=row.style)
    run = Run(
        config,
        run_builder.provider,
        None if "--data-path" in flags else run_builder.datasets,
        functions=StepFunctions(on_step=reports.append),
    )
    sent: list[tuple[str, int, bool]] = []
    originals = {name: getattr(comm, name) for name in SENDING}
    try:
        with run:
            setup = run._opened
            sizes = [chunk.num_bytes() for chunk in setup.model]
            seen = {
                "parameters": sum(size["parameters"] for size in sizes),
                "gradients": sum(size["gradients"] for size in sizes),
                "state": setup.optimizer.num_bytes(),
                "buckets": sum(len(b.layout.buckets) for c in setup.model for b in c.buffers),
            }
            for name in SENDING:
                setattr(comm, name, counting(name, originals[name], sent))
            run.train()
            with run.active():
                seen["micro-batches"] = get_num_microbatches()
            run.evaluate("validation")
    finally:
        for name, function in originals.items():
            setattr(comm, name, function)
        logger.removeHandler(handler)
    files = sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())
    steps = max(len(reports), 1)
    return seen | {
        "iterations": [report.iteration for report in reports],
        "loss": [float(f"{report.losses['lm loss']:.4g}") for report in reports],
        "exact loss": [report.losses["lm loss"] for report in reports],
        "norm": [float(f"{report.grad_norm or 0:.3g}") for report in reports],
        "learning rate": [float(f"{report.learning_rate:.4g}") for report in reports],
        "loss scale": [report.loss_scale for report in reports],
        "messages": len(sent) // steps,
        "bytes sent": sum(size for _, size, _ in sent) // steps,
        "kinds": sorted({name for name, _, _ in sent}),
        "files": [name for name in files if not name.endswith((".json", ".txt"))],
        "bytes of files": sum((Path(folder) / name).stat().st_size for name in files),
        "lines": len(lines),
    }


def counting(name: str, function: Callable, sent: list) -> Callable:
    """A function of ``comm`` that notes what it sends."""

    def call(*args: Any, **kwargs: Any) -> Any:
        first = args[0]
        tensors = [op.tensor for op in first] if isinstance(first, (list, tuple)) else [first]
        size = sum(memory.num_bytes(tensor) for tensor in tensors)
        sent.append((name, size, bool(kwargs.get("async_op"))))
        return function(*args, **kwargs)

    return call


def observe_worker(row: Row) -> list[dict[str, Any]]:
    """Both runs, on this rank."""
    found = []
    for words in (row.off, row.on):
        folder = comm.broadcast_object(tempfile.mkdtemp(), 0)
        if row.before:
            observe(row.before, row, folder)
            parallel_state.destroy_model_parallel()
        found.append(observe(words, row, folder))
    return found


def line_of(row: Row) -> str:
    """What a run says about the row's words."""
    args = run_builder.configuration(*row.on.split(), style=row.style)
    return "\n".join(without_effect(args))


# --- the rows, in the guide's order ---------------------------------------------------------------

GQA = "--group-query-attention --num-query-groups"
FULL = "--recompute_granularity full --recompute_method block --recompute_num_layers"
BITS16 = "--params_dtype bf16 --compute_dtype bf16"
SAVE = "--save {out} --save_interval 3"
MORE = "--train_iters 5 --override_opt_param_scheduler --load {out}"
DROP = "--hidden-dropout 0.5"
FLASH = "--use_flash_attn --sparse-mode 4 --attention-mask-type full --pre_tockens 4"
PP = "--pipeline-model-parallel-size 2"
CP4 = "--context-parallel-size 4"
TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"
DOCUMENTS = (
    f"--data-path {TINY}/tiny_text_document --tokenizer-type SentencePieceTokenizer "
    f"--tokenizer-model {TINY}/tok.model --data-cache-path {{out}}/cache --padded_vocab_size 1024 "
    "--seq_length 64 --max-position-embeddings 64"
)
"""Documents that end within samples."""
WD = "--weight_decay_incr_style linear --start_weight_decay 0.1 --end_weight_decay"


def changes(flag: str, on: str, sees: str, off: str = "", **more: Any) -> Row:
    """A row whose two runs differ."""
    return Row(flag=flag, on=on, off=off, sees=sees, **more)


def kept(flag: str, on: str, **more: Any) -> Row:
    """A row that changes what forward leaves in memory."""
    return Row(flag=flag, on=on, sees="kept", **more)


def elsewhere(flag: str, shown: str, note: str) -> Row:
    """A row whose effect another test shows."""
    return Row(flag=flag, shown=shown, note=note)


def told(flag: str, on: str, says: str) -> Row:
    """A row that changes nothing here, and says so."""
    return Row(flag=flag, on=on, says=says)


ROWS: tuple[Row, ...] = (
    changes("padded_vocab_size", "--padded_vocab_size 128", "parameters"),
    changes("hidden_size", "--hidden_size 32", "parameters"),
    changes("seq_length", "--seq_length 8", "loss"),
    changes("rotary_base", "--rotary_base 100", "loss"),
    changes("num_layers", "--num_layers 4", "parameters"),
    changes("position_embedding_type", "--position_embedding_type learned_absolute", "parameters"),
    changes("init_method_std", "--init_method_std 0.3", "loss"),
    changes("normalization", "--normalization LayerNorm", "parameters"),
    changes("norm_epsilon", "--norm_epsilon 0.1", "loss"),
    changes("group_query_attention", f"{GQA} 1", "parameters"),
    changes("num_attention_heads", "--num_attention_heads 4", "loss"),
    changes("num_query_groups", f"{GQA} 1", "parameters", f"{GQA} 2"),
    changes("attention_dropout", "--attention_dropout 0.5", "loss"),
    changes("ffn_hidden_size", "--ffn_hidden_size 48", "parameters"),
    changes("hidden_dropout", "--hidden_dropout 0.5", "loss"),
    elsewhere(
        "attention_softmax_in_fp32",
        "tests/unit/ops/test_attention_variants.py",
        "with a 16-bit softmax_compute_dtype scores and weights are rounded unless it is on",
    ),
    elsewhere(
        "use_flash_attn",
        "tests/unit/predecessor/test_predecessor_api.py::test_masks_are_added_or_hide",
        "keeps the softmax in float32 and lets numbers in a mask hide; the kernel is the same",
    ),
    changes(
        "untie_embeddings_and_output_weights",
        "--untie_embeddings_and_output_weights",
        "parameters",
        style="gpt2",
    ),
    elsewhere(
        "transformer_impl",
        "tests/unit/training/test_flag_table.py",
        "nothing here: there is one implementation of the layers",
    ),
    kept("recompute_granularity", "--recompute_granularity selective"),
    kept("recompute_method", f"{FULL} 1"),
    kept("recompute_num_layers", f"{FULL} 3", off=f"{FULL} 1"),
    elsewhere(
        "fp16_lm_cross_entropy",
        "tests/unit/training/test_wrong_configurations.py",
        "asks for float16 logits and refuses others; the loss is computed in float32 either way",
    ),
    changes("fp32_residual_connection", "--bf16 --fp32_residual_connection", "loss", "--bf16"),
    changes("add_qkv_bias", "--add_qkv_bias", "parameters"),
    changes("add_dense_bias", "--add_dense_bias", "parameters"),
    changes("add_bias_linear", "--add_bias_linear False", "parameters", style="gpt2"),
    changes("use_sandwich_norm", "--use_sandwich_norm", "parameters"),
    changes("pre_tockens", "--use_flash_attn --pre_tockens 4", "loss", "--use_flash_attn"),
    changes("next_tockens", f"{FLASH} --next_tockens 1", "loss", f"{FLASH} --next_tockens 0"),
    told("shape_order", "--shape_order SBH", "kernels take tensors in the order they need"),
    changes(
        "attn_post_norm_scale",
        "--use_sandwich_norm --attn_post_norm_scale 0.1",
        "loss",
        "--use_sandwich_norm",
    ),
    changes(
        "ffn_post_norm_scale",
        "--use_sandwich_norm --ffn_post_norm_scale 0.1",
        "loss",
        "--use_sandwich_norm",
    ),
    changes("params_dtype", BITS16, "parameters", "--compute_dtype bf16"),
    changes("compute_dtype", "--compute_dtype bfloat16", "exact loss"),
    changes("embedding_dtype", "--embedding_dtype bfloat16", "parameters"),
    told("use_fused_swiglu", "--use_fused_swiglu", "the kernel of each operation is chosen once"),
    changes("apply_rope_fusion", "--bf16 --apply_rope_fusion", "loss", "--bf16 --no-rope-fusion"),
    changes("hidden_act", "--hidden_act squared_relu", "loss", style="gpt2"),
    changes("seed", "--seed 78", "loss"),
    changes("log_interval", "--log_interval 1", "lines"),
    changes("train_iters", "--train_iters 5", "iterations"),
    changes("save_interval", "--save {out} --save_interval 1", "files", SAVE),
    changes("eval_interval", "--eval-iters 1 --eval_interval 2", "lines", "--eval-iters 1"),
    changes(
        "accumulate_allreduce_grads_in_fp32",
        f"{BITS16} --accumulate_allreduce_grads_in_fp32",
        "gradients",
        BITS16,
    ),
    changes("clip_grad", "--optimizer sgd --clip_grad 0.01", "loss", "--optimizer sgd"),
    changes("bf16", "--bf16", "parameters"),
    changes("fp16", "--fp16", "parameters"),
    changes("loss_scale", "--fp16 --loss_scale 64", "loss scale", "--fp16 --loss_scale 128"),
    changes(
        "initial_loss_scale",
        "--fp16 --initial_loss_scale 64",
        "loss scale",
        "--fp16 --initial_loss_scale 128",
    ),
    changes(
        "loss_scale_window",
        "--fp16 --initial_loss_scale 64 --loss_scale_window 1",
        "loss scale",
        "--fp16 --initial_loss_scale 64",
    ),
    changes(
        "hysteresis",
        "--fp16 --initial_loss_scale 1e30 --hysteresis 1",
        "loss scale",
        "--fp16 --initial_loss_scale 1e30",
        note="as a flag, overflows before the scale shrinks, as in Megatron; as "
        "`loss_scale_factor` in YAML, the factor by which it grows",
    ),
    changes("use_distributed_optimizer", "--use_distributed_optimizer", "state", ranks=2),
    changes("resume_training", MORE, "iterations", "--train_iters 5", before=SAVE),
    changes(
        "resume_crc_check",
        f"{SAVE} --ckpt_format ckpt --resume_crc_check",
        "bytes of files",
        f"{SAVE} --ckpt_format ckpt",
    ),
    changes("load", MORE, "iterations", "--train_iters 5", before=SAVE),
    changes("save", SAVE, "files"),
    elsewhere(
        "ckpt_prefix",
        "tests/unit/predecessor/test_predecessor_api.py::test_training_goes_on_where_a_checkpoint_was_written",
        "names the files of `save_checkpoint` of a script and of the converters; a run's own "
        "checkpoints are folders named by iteration",
    ),
    changes("ckpt_format", f"{SAVE} --ckpt_format ckpt", "files", SAVE),
    changes(
        "keep_checkpoint_max",
        "--save {out} --save_interval 1 --keep_checkpoint_max 1",
        "files",
        "--save {out} --save_interval 1",
    ),
    elsewhere(
        "wrap_with_ddp",
        "tests/ranks/test_predecessor_scripts.py::test_ddp_and_its_optimizers_are_adamw",
        "`get_model` of a script wraps; a run always has flat buffers",
    ),
    changes(
        "bucket_size",
        "--overlap_grad_reduce --bucket_size 5000",
        "buckets",
        "--overlap_grad_reduce",
    ),
    changes("enable_mem_align", "--enable_mem_align", "gradients"),
    changes(
        "overlap_grad_reduce",
        "--overlap_grad_reduce --bucket_size 5000",
        "messages",
        ranks=2,
    ),
    elsewhere(
        "delay_grad_reduce",
        "tests/unit/config/test_guide_rows.py::test_stages_behind_the_first_reduce_at_the_end",
        "stages behind the first reduce after the backward",
    ),
    changes("no_load_optim", f"{MORE} --no_load_optim", "loss", MORE, before=SAVE),
    changes(
        "no_load_rng",
        f"{DROP} {MORE} --no_load_rng",
        "loss",
        f"{DROP} {MORE}",
        before=f"{SAVE} {DROP}",
    ),
    changes("new_dataset", f"{MORE} --new_dataset", "loss", MORE, before=SAVE),
    *(
        elsewhere(
            f"profile{name}", "tests/unit/engine/test_profiler.py", "what is recorded, and where"
        )
        for name in (
            *("", "_save_path", "_step_start", "_step_end", "_level", "_with_stack", "_memory"),
            *("_framework", "_communication", "_parallel_strategy", "_aicore_metrics"),
            *("_l2_cache", "_hbm_ddr", "_pcie", "_data_process", "_data_simplification"),
            *("_op_time", "_offline_analyse", "_dynamic_profiler_config_path"),
        )
    ),
    changes("micro_batch_size", "--micro_batch_size 2", "micro-batches"),
    elsewhere(
        "micro_batch_num",
        "tests/unit/config/test_config.py",
        "the global batch is micro-batches x batch x data parallel ranks",
    ),
    changes("reset_attention_mask", f"{DOCUMENTS} --reset_attention_mask", "loss", DOCUMENTS),
    changes(
        "reset_position_ids",
        f"{DOCUMENTS} --position_embedding_type learned_absolute --reset_position_ids",
        "loss",
        f"{DOCUMENTS} --position_embedding_type learned_absolute",
    ),
    changes("eod_mask_loss", f"{DOCUMENTS} --eod_mask_loss", "loss", DOCUMENTS),
    elsewhere(
        "pad_token_id",
        "tests/unit/engine/test_loader_batches.py",
        "labels of that token do not count in the loss",
    ),
    elsewhere("eos_token_id", "tests/unit/legacy/test_eos_mask.py", "ends documents in `EosMask`"),
    elsewhere(
        "drop_remainder",
        "tests/unit/engine/test_guide_effects.py::test_the_remainder_of_the_data_is_dropped_or_not",
        "batches of 2 from 5 samples: two, or three",
    ),
    changes("optimizer", "--optimizer sgd", "state"),
    changes("adam_beta1", "--adam_beta1 0.5", "loss"),
    changes("adam_beta2", "--adam_beta2 0.5", "loss"),
    changes("adam_eps", "--adam_eps 0.1", "loss"),
    changes("lr_decay_style", "--lr_decay_style linear", "learning rate"),
    changes("lr", "--lr 1e-3", "learning rate"),
    changes(
        "min_lr",
        "--lr_decay_style linear --min_lr 5e-3",
        "learning rate",
        "--lr_decay_style linear",
    ),
    changes("lr_warmup_iters", "--lr_warmup_iters 2", "learning rate"),
    changes(
        "lr_decay_iters",
        "--lr_decay_style linear --lr_decay_iters 6",
        "learning rate",
        "--lr_decay_style linear",
    ),
    changes(
        "use_checkpoint_opt_param_scheduler",
        "--train_iters 5 --load {out} --lr 1e-3 --use_checkpoint_opt_param_scheduler",
        "learning rate",
        "--train_iters 5 --load {out} --lr 1e-3 --override_opt_param_scheduler",
        before=SAVE,
    ),
    changes(
        "override_opt_param_scheduler",
        "--train_iters 5 --load {out} --lr 1e-3 --override_opt_param_scheduler",
        "learning rate",
        "--train_iters 5 --load {out} --lr 1e-3 --use_checkpoint_opt_param_scheduler",
        before=SAVE,
    ),
    changes("weight_decay", "--weight_decay 5", "loss"),
    elsewhere(
        "overlap_param_gather",
        "tests/ranks/test_distrib_optimizer.py",
        "parameters are gathered bucket by bucket as the next forward needs them",
    ),
    changes(
        "start_weight_decay",
        "--weight_decay_incr_style linear --start_weight_decay 4 --end_weight_decay 5",
        "loss",
        "--weight_decay_incr_style linear --start_weight_decay 0 --end_weight_decay 5",
    ),
    changes("end_weight_decay", f"{WD} 9", "loss", f"{WD} 0.2"),
    changes(
        "weight_decay_incr_style",
        "--weight_decay_incr_style cosine --start_weight_decay 0 --end_weight_decay 9",
        "loss",
        "--weight_decay_incr_style linear --start_weight_decay 0 --end_weight_decay 9",
    ),
    changes("tensor_model_parallel_size", "--tensor_model_parallel_size 2", "parameters", ranks=2),
    changes("context_parallel_size", "--context_parallel_size 2", "kinds", ranks=2),
    changes(
        "context_parallel_algo",
        f"{CP4} --context_parallel_algo megatron_cp_algo",
        "kinds",
        f"{CP4} --num-attention-heads 4",
        ranks=4,
    ),
    changes(
        "ulysses_degree_in_cp",
        f"{CP4} --context_parallel_algo hybrid_cp_algo --ulysses_degree_in_cp 2",
        "bytes sent",
        f"{CP4} --context_parallel_algo megatron_cp_algo",
        ranks=4,
    ),
    changes(
        "expert_model_parallel_size",
        "--num-experts 4 --expert_model_parallel_size 2",
        "parameters",
        "--num-experts 4",
        ranks=2,
    ),
    changes(
        "virtual_pipeline_model_parallel_size",
        f"{PP} --virtual_pipeline_model_parallel_size 2",
        "messages",
        PP,
        ranks=2,
    ),
    changes(
        "num_layers_per_virtual_pipeline_stage",
        f"{PP} --num_layers_per_virtual_pipeline_stage 2",
        "messages",
        PP,
        ranks=2,
    ),
    changes(
        "sequence_parallel",
        "--tensor-model-parallel-size 2 --sequence_parallel",
        "kinds",
        "--tensor-model-parallel-size 2",
        ranks=2,
    ),
    changes("pipeline_model_parallel_size", PP, "parameters", ranks=2),
    changes("num_layer_list", f"{PP} --num_layer_list [5,3]", "parameters", PP, ranks=2),
    kept("recompute", "--recompute [2]"),
    kept("select_recompute", "--select_recompute [4]"),
    elsewhere(
        "select_comm_recompute",
        "tests/unit/engine/test_guide_effects.py::test_a_flag_of_the_guide_has_its_effect",
        "the named layers gather their input again instead of keeping it",
    ),
)
"""All rows."""


# --- the document ---------------------------------------------------------------------------------

HEAD = """# The guide's rows, by effect

Every argument of the five tables of the user guide, and what it was seen to change: two short
runs that differ in it, side by side on CPU. `python tests/guide_rows.py` writes this page, and
`tests/ranks/test_rows_by_effect.py` runs every row and fails if the page says something else.

| argument | without | with | seen |
|---|---|---|---|
"""


def shown_value(value: Any) -> str:
    """A value in the table."""
    if isinstance(value, list):
        if len(value) > 4:
            return f"{len(value)} entries"
        return ", ".join(str(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def line_in_table(row: Row, seen: tuple[Any, Any] | None) -> str:
    """A row of the document."""
    name = f"`{row.flag}`"
    if row.shown:
        return f"| {name} | | | {row.note} (`{row.shown}`) |"
    if seen is None:
        return f"| {name} | | | nothing here: {row.says} |"
    off, on = (shown_value(value) for value in seen)
    unit = " bytes" if row.sees in ("parameters", "gradients", "state", "kept") else ""
    ranks = f", {row.ranks} ranks" if row.ranks > 1 else ""
    note = f"; {row.note}" if row.note else ""
    return f"| {name} | {off}{unit} | {on}{unit} | {row.sees}{ranks}{note} |"


def seen_of(row: Row, run: Callable[..., list[Any]]) -> tuple[Any, Any] | None:
    """What a row's two runs differ in, on the last rank; None for a row without runs.

    Args:
        row: the row.
        run: ``dist_run``.
    """
    if not row.sees:
        return None
    if row.sees == "kept":
        pairs = [
            run(kept_worker, ranks=1, timeout=120.0, words=words)[0] for words in (row.off, row.on)
        ]
        for planned, measured in pairs:
            assert abs(measured - planned) <= 0.15 * planned, (row.flag, planned, measured)
        return pairs[0][0], pairs[1][0]
    off, on = run(observe_worker, ranks=row.ranks, timeout=120.0, row=row)[-1]
    return off[row.sees], on[row.sees]


def main() -> None:
    """Write the document."""
    pools = RankPools()

    def run(worker: Callable, ranks: int, timeout: float, **params: Any) -> list[Any]:
        return pools.run(worker, ranks, timeout, params)

    try:
        lines = [line_in_table(row, seen_of(row, run)) for row in ROWS]
    finally:
        pools.close()
    DOCUMENT.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    importlib.import_module("guide_rows").main()  # ranks know the rows by their module's name
