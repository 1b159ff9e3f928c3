# SPDX-License-Identifier: Apache-2.0
"""Flags of the run: configuration files, plans, length, batches, evaluation, logging, profiling."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.training.flags import profiling
from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import (
    UNSET,
    EntryPoint,
    Field,
    Flag,
    NoEffect,
    Refused,
    in_group,
    off,
    on,
    or_never,
    value,
    values,
)
from mindspeed_ms.training.flags.value_types import count, positive, ranks


def _none_is_zero(batches: int) -> int:
    """Scripts also write -1 for no evaluation."""
    return 0 if batches == -1 else batches


def _last_batch(schedule: str | None) -> Any:
    """The size of its last stage; a schedule of another form is refused by its field."""
    size = str(schedule).rpartition(":")[2].strip()
    return int(size) if size.isdecimal() and int(size) else UNSET


def _numbers(words: str) -> tuple[int, ...]:
    """Numbers separated by commas.

    Raises:
        ValueError: something else.
    """
    try:
        return tuple(sorted(int(word) for word in words.split(",")))
    except ValueError:
        raise ValueError(
            f"--phase-transition-iterations {words!r} is no list of iterations; write it like "
            "1000,2000"
        ) from None


CONFIGURATION = in_group(
    "configuration files",
    [
        values(
            "--yaml",
            str,
            EntryPoint(
                "YAML file, or model, accelerate and train files; repeatable. Flags win over files."
            ),
            common=True,
            arity="some",
            aliases=("--config",),
            dest="yaml",
        ),
        value(
            "--yaml-cfg",
            str,
            EntryPoint("File in Megatron's own YAML layout, in place of flags. Flags win over it."),
            common=True,
        ),
        value(
            "--print-args",
            str,
            EntryPoint(
                "Arguments printed at start: those given or other than the default, all in "
                "Megatron's table, or none."
            ),
            "changed",
            choices=("changed", "all", "none"),
            common=True,
        ),
    ],
)

PLANNING = in_group(
    "dry run",
    [
        on(
            "--dry-run",
            EntryPoint("Print what a run would need; start none."),
            common=True,
        ),
        on(
            "--fake-process-group",
            EntryPoint(
                "Same as --dry-run, for as many ranks as WORLD_SIZE in the environment says: what "
                "one of them needs is computed, not tried."
            ),
        ),
        value(
            "--world-size",
            ranks,
            EntryPoint("With --dry-run: plan for this many ranks. Default: the fewest that fit."),
            common=True,
        ),
        on(
            "--suggest",
            EntryPoint("With --dry-run: search layouts that fit and rank them by step time."),
            common=True,
        ),
        value(
            "--device-memory",
            positive,
            EntryPoint("With --dry-run: GiB of memory of one device."),
        ),
        value(
            "--device-tflops",
            positive,
            EntryPoint("With --dry-run: peak TFLOP/s of one device in the compute type."),
        ),
        value(
            "--calibrate",
            str,
            EntryPoint("With --dry-run: folder of a run whose measured steps set all rates."),
        ),
        on(
            "--scale-down",
            EntryPoint("Shrink sizes to a laptop's, keep every structural flag, train two steps."),
            common=True,
        ),
    ],
)

LENGTH = in_group(
    "training",
    [
        value(
            "--micro-batch-size",
            int,
            Field("dataset_config.batch_size"),
            typical=1,
            small=1,
            common=True,
        ),
        value(
            "--global-batch-size",
            int,
            Field("training_config.global_batch_size", clears=("micro_batch_num",)),
            small=None,
            common=True,
        ),
        value(
            "--micro-batch-num",
            int,
            Field("dataset_config.micro_batch_num", clears=("global_batch_size",)),
            small=None,
        ),
        values(
            "--rampup-batch-size",
            int,
            Field("training_config.rampup_batch_size"),
            arity="three",
            excludes=("--step-batch-size-schedule",),
        ),
        value(
            "--step-batch-size-schedule",
            str,
            Field(
                "training_config.step_batch_size_schedule",
                sets={"training_config.global_batch_size": _last_batch},
            ),
            small=None,
        ),
        on(
            "--decrease-batch-size-if-needed",
            Field("training_config.decrease_batch_size_if_needed"),
        ),
        value(
            "--train-iters",
            int,
            Field("training_config.training_iters", clears=("train_samples",)),
            excludes=("--train-samples", "--lr-decay-samples", "--lr-warmup-samples"),
            common=True,
        ),
        value(
            "--train-samples",
            int,
            Field("training_config.train_samples", clears=("train_iters",)),
            excludes=("--lr-decay-iters", "--lr-warmup-iters"),
            common=True,
        ),
        value(
            "--exit-interval",
            int,
            or_never("training_config.exit_interval"),
            small=None,
        ),
        value(
            "--exit-duration-in-mins",
            int,
            or_never("training_config.exit_duration_in_mins"),
            small=None,
        ),
        on("--exit-signal-handler", Field("training_config.exit_signal_handler")),
        value(
            "--exit-signal",
            str,
            Field("training_config.exit_signal"),
            "SIGTERM",
            choices=("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"),
        ),
        values(
            "--iterations-to-skip",
            int,
            Field("training_config.iterations_to_skip"),
            arity="some",
            small=None,
        ),
        value(
            "--phase-transition-iterations",
            str,
            Field(
                "training_config.phase_transition_iterations",
                means=_numbers,
                back=lambda own, _: own and ",".join(map(str, own)),
            ),
            small=None,
        ),
        on("--skip-train", Field("training_config.skip_train"), small=False),
        value(
            "--check-weight-hash-across-dp-replicas-interval",
            int,
            Field("training_config.check_weight_hash_across_dp_replicas_interval"),
        ),
        on("--allow-oversubscription", Field("training_config.allow_oversubscription")),
        on("--calculate-per-token-loss", Field("training_config.calculate_per_token_loss")),
        value("--label-smoothing", float, Field("training_config.label_smoothing"), 0.0),
        value(
            "--loss-reduction",
            str,
            Field("training_config.loss_reduction"),
            "mean",
            choices=("mean", "sum"),
        ),
        on("--cross-entropy-loss-fusion", NoEffect("the loss has one kernel")),
        value("--cross-entropy-fusion-impl", str, NoEffect("the loss has one kernel"), "native"),
        on("--manual-gc", NoEffect("Python's collector is left alone; a step leaves no cycles")),
        value("--manual-gc-interval", int, NoEffect("see --manual-gc"), 0),
        off("--no-manual-gc-eval", "manual_gc_eval", NoEffect("see --manual-gc")),
        value(
            "--rerun-mode",
            str,
            NoEffect(
                "a step is not run twice to classify a fault; its numbers are the same, and "
                "--check-for-nan-in-loss-and-grad ends a run that has bad ones"
            ),
            "disabled",
            choices=("disabled", "validate_results", "report_stats"),
        ),
        value(
            "--empty-unused-memory-level",
            int,
            NoEffect("MindSpore keeps freed memory in its pool"),
            0,
            choices=(0, 1, 2),
        ),
    ],
)

_GRANULARITY = "model_config.recompute_granularity"
_METHOD, _NUM_LAYERS = "model_config.recompute_method", "model_config.recompute_num_layers"
_MODULES = "model_config.recompute_modules"
_WHOLE_LAYERS = Field(_GRANULARITY, by_rule=True, also=(_METHOD, _NUM_LAYERS))
_PARTS = Field(_GRANULARITY, by_rule=True, also=(_MODULES,))

RECOMPUTATION = in_group(
    "recomputation",
    [
        value(
            "--recompute-granularity",
            str,
            Field(_GRANULARITY, also=(_MODULES,)),
            choices=("full", "selective", "mlp"),
            refuses=(
                (
                    "mlp",
                    Refused(
                        "parts of a layer are named by a flag of their own",
                        "use --recompute-granularity selective --recompute-modules mlp",
                    ),
                ),
            ),
            common=True,
        ),
        on(
            "--recompute-activations",
            Field(_GRANULARITY, means="selective", also=(_MODULES,)),
            help="Same as --recompute-granularity selective.",
        ),
        value(
            "--recompute-method",
            str,
            Field(_METHOD),
            choices=("uniform", "block"),
            common=True,
        ),
        value("--recompute-num-layers", int, Field(_NUM_LAYERS), common=True),
        values("--recompute-modules", str, Field(_MODULES), arity="some"),
        value("--recompute", str, Field("parallel_config.recompute")),
        value("--select-recompute", str, Field("parallel_config.select_recompute")),
        value("--select-comm-recompute", str, Field("parallel_config.select_comm_recompute")),
        on(
            "--recompute-activation-function",
            _PARTS,
            help="Recompute the activation function of every layer.",
        ),
        on("--recompute-norm", _PARTS, help="Recompute the norms of every layer."),
        on(
            "--checkpoint-activations",
            _WHOLE_LAYERS,
            help="Same as --recompute-granularity full --recompute-method uniform.",
        ),
        value(
            "--activations-checkpoint-method",
            str,
            _WHOLE_LAYERS,
            choices=("uniform", "block"),
            help="Same as --recompute-granularity full with this --recompute-method.",
        ),
        value(
            "--checkpoint-num-layers",
            count,
            _WHOLE_LAYERS,
            1,
            aliases=("--activations-checkpoint-num-layers",),
            help="--recompute-num-layers of the two flags above.",
        ),
    ],
)

VALIDATION = in_group(
    "validation",
    [
        value(
            "--eval-iters",
            int,
            Field("training_config.eval_iters", means=_none_is_zero, back=lambda n, _: n),
            100,
            small=0,
            common=True,
        ),
        value(
            "--eval-global-batch-size",
            int,
            Field("training_config.eval_global_batch_size"),
            small=None,
        ),
        value(
            "--eval-micro-batch-size",
            int,
            Field("training_config.eval_micro_batch_size"),
            small=None,
        ),
        value("--start-eval-at-iter", int, Field("training_config.start_eval_at_iter"), small=None),
        value(
            "--eval-interval",
            int,
            Field("training_config.eval_interval"),
            1000,
            small=None,
            common=True,
        ),
        on("--full-validation", Field("training_config.full_validation")),
        on(
            "--multiple-validation-sets",
            Field("dataset_config.multiple_validation_sets"),
            small=False,
        ),
        values(
            "--validation-set-names",
            str,
            Field("training_config.validation_set_names"),
            "some",
            small=None,
        ),
        on("--test-mode", NoEffect("there are no extra tests inside training")),
    ],
)

_STRAGGLER_PORT = NoEffect("--log-straggler reports at every log line; no port switches it")

LOGGING = in_group(
    "logging",
    [
        value(
            "--log-interval",
            int,
            Field("training_config.log_interval"),
            100,
            small=1,
            common=True,
        ),
        value("--pipeline-timeline", str, Field("training_config.pipeline_timeline")),
        value(
            "--log-style",
            str,
            Field("training_config.log_style"),
            "megatron",
            choices=("megatron", "guide", "short"),
        ),
        on("--log-throughput", Field("training_config.log_throughput"), common=True),
        on("--log-energy", Field("training_config.log_energy")),
        on("--log-params-norm", Field("training_config.log_params_norm")),
        on("--log-num-zeros-in-grad", Field("training_config.log_num_zeros_in_grad")),
        on(
            "--log-progress",
            Field("training_config.log_progress"),
        ),
        value(
            "--timing-log-level",
            int,
            Field("training_config.timing_log_level"),
            0,
            choices=(0, 1, 2),
        ),
        value(
            "--timing-log-option",
            str,
            Field("training_config.timing_log_option"),
            "minmax",
            choices=("max", "minmax", "all"),
        ),
        off(
            "--no-barrier-with-level-1-timing",
            "barrier_with_L1_time",
            Field("training_config.barrier_with_level_1_timing"),
        ),
        value("--logging-level", int, Field("training_config.logging_level")),
        on("--report", Field("training_config.report"), small=False, common=True),
        *(
            value(
                f"--save-{name}-interval",
                int,
                Field(f"training_config.save_{name.replace('-', '_')}_interval"),
                small=None,
            )
            for name in ("params", "wgrads", "activations", "dgrads", "tokens-per-expert")
        ),
        value(
            "--log-file",
            str,
            Field("training_config.log_file"),
            small=None,
            common=True,
        ),
        value(
            "--tensorboard-dir",
            str,
            Field("training_config.tensorboard_dir"),
            small=None,
            common=True,
        ),
        value(
            "--tensorboard-log-interval",
            int,
            Field("training_config.tensorboard_log_interval"),
            1,
        ),
        value(
            "--tensorboard-queue-size", int, Field("training_config.tensorboard_queue_size"), 1000
        ),
        *(
            on(f"--log-{name}-to-tensorboard", Field(f"training_config.log_{field}_to_tensorboard"))
            for name, field in (
                ("timers", "timers"),
                ("memory", "memory"),
                ("validation-ppl", "validation_ppl"),
                ("world-size", "world_size"),
            )
        ),
        on(
            "--log-batch-size-to-tensorboard", NoEffect("the batch size is always among the curves")
        ),
        on(
            "--log-learning-rate-to-tensorboard",
            Field("training_config.log_learning_rate_to_tensorboard"),
            default=True,
        ),
        off(
            "--no-log-learning-rate-to-tensorboard",
            "log_learning_rate_to_tensorboard",
            Field("training_config.log_learning_rate_to_tensorboard"),
            aliases=("--no-log-learnig-rate-to-tensorboard",),
        ),
        off(
            "--no-log-loss-scale-to-tensorboard",
            "log_loss_scale_to_tensorboard",
            Field("training_config.log_loss_scale_to_tensorboard"),
            aliases=("--disable-log-loss-scale-to-tensorboard",),
        ),
        on("--log-params-norm-per-layer", Field("training_config.log_params_norm_per_layer")),
        on("--check-for-spiky-loss", Field("training_config.check_for_spiky_loss")),
        on("--check-for-large-grads", Field("training_config.check_for_large_grads")),
        on("--log-max-attention-logit", Field("training_config.log_max_attention_logit")),
        on("--log-straggler", Field("training_config.log_straggler")),
        value(
            "--straggler-minmax-count",
            int,
            Field("training_config.straggler_minmax_count"),
            1,
        ),
        on("--disable-straggler-on-startup", _STRAGGLER_PORT),
        value("--straggler-ctrlr-port", int, _STRAGGLER_PORT, 65535),
        value(
            "--log-memory-interval",
            int,
            Field("training_config.log_memory_interval"),
        ),
        value("--wandb-project", str, Field("training_config.wandb_project"), small=None),
        value("--wandb-exp-name", str, Field("training_config.wandb_exp_name"), small=None),
        value("--wandb-save-dir", str, Field("training_config.wandb_save_dir"), small=None),
        value("--wandb-entity", str, Field("training_config.wandb_entity"), small=None),
    ],
)

FIRST: tuple[Flag, ...] = (*CONFIGURATION, *PLANNING)
"""Those that help begins with."""

ROWS: tuple[Flag, ...] = (
    *LENGTH,
    *RECOMPUTATION,
    *VALIDATION,
    *LOGGING,
    *profiling.ROWS,
    *compact(
        "training",
        NoEffect("see --manual-gc"),
        "--disable-manual-gc-eval off >manual_gc_eval",
    ),
    *compact(
        "training",
        NoEffect("--exit-signal-handler is the switch of the training process"),
        """
--exit-signal-handler-for-training
--exit-signal-handler-for-dataloader
""",
    ),
)
