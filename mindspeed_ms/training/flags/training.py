"""Flags of the run: length, batches, optimizer, schedules, logging, evaluation, profiling."""

from __future__ import annotations

from mindspeed_ms.training.flags.row import (
    EntryPoint,
    Field,
    Flag,
    NoEffect,
    Refused,
    bool_or_word,
    in_group,
    off,
    on,
    toggle,
    value,
    values,
)

_BATCH = ("dataset_config.micro_batch_num",)

LENGTH = in_group(
    "training",
    [
        value("--micro-batch-size", int, Field("dataset_config.batch_size", also=_BATCH)),
        value("--global-batch-size", int, Field("training_config.global_batch_size", also=_BATCH)),
        value("--micro-batch-num", int, Field("dataset_config.micro_batch_num")),
        values(
            "--rampup-batch-size", int, Field("training_config.rampup_batch_size"), arity="three"
        ),
        value("--step-batch-size-schedule", str, Field("training_config.step_batch_size_schedule")),
        on(
            "--decrease-batch-size-if-needed",
            Field("training_config.decrease_batch_size_if_needed"),
        ),
        value("--train-iters", int, Field("training_config.training_iters")),
        value("--train-samples", int, Field("training_config.train_samples")),
        value("--exit-interval", int, Field("training_config.exit_interval")),
        value("--exit-duration-in-mins", int, Field("training_config.exit_duration_in_mins")),
        on("--exit-signal-handler", Field("training_config.exit_signal_handler")),
        on("--skip-train", Field("training_config.skip_train")),
        on("--calculate-per-token-loss", Field("training_config.calculate_per_token_loss")),
        value(
            "--recompute-granularity",
            str,
            Field("model_config.recompute_granularity"),
            choices=("full", "selective"),
        ),
        on(
            "--recompute-activations",
            Field("model_config.recompute_granularity"),
            help="Same as --recompute-granularity selective.",
        ),
        value(
            "--recompute-method",
            str,
            Field("model_config.recompute_method"),
            choices=("uniform", "block"),
        ),
        value("--recompute-num-layers", int, Field("model_config.recompute_num_layers")),
        values("--recompute-modules", str, Field("model_config.recompute_modules"), arity="some"),
        value("--recompute", str, Field("parallel_config.recompute")),
        value("--select-recompute", str, Field("parallel_config.select_recompute")),
        value("--select-comm-recompute", str, Field("parallel_config.select_comm_recompute")),
        on("--cross-entropy-loss-fusion", NoEffect("the loss has one kernel")),
        value("--cross-entropy-fusion-impl", str, NoEffect("the loss has one kernel"), "native"),
        on("--manual-gc", NoEffect("Python's collector is left alone; a step leaves no cycles")),
        value("--manual-gc-interval", int, NoEffect("see --manual-gc"), 0),
        off("--no-manual-gc-eval", "manual_gc_eval", NoEffect("see --manual-gc")),
        value(
            "--rerun-mode",
            str,
            NoEffect("a step is not run twice to classify a fault"),
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

_OTHER_OPTIMIZERS = ("muon", "dist_muon", "adaptive_muon", "lion", "soap")
_NO_OPTIMIZER = Refused("this update rule is not available", "use adam or sgd")

REGULARIZATION = in_group(
    "regularization and optimizer",
    [
        value("--attention-dropout", float, Field("model_config.attention_dropout_rate"), 0.1),
        value("--hidden-dropout", float, Field("model_config.hidden_dropout_rate"), 0.1),
        value(
            "--weight-decay",
            float,
            Field(
                "optimizer_config.weight_decay",
                also=("optimizer_config.start_weight_decay", "optimizer_config.end_weight_decay"),
            ),
            0.01,
        ),
        value("--start-weight-decay", float, Field("optimizer_config.start_weight_decay")),
        value("--end-weight-decay", float, Field("optimizer_config.end_weight_decay")),
        value(
            "--weight-decay-incr-style",
            str,
            Field("optimizer_config.weight_decay_incr_style"),
            "constant",
            choices=("constant", "linear", "cosine"),
        ),
        values(
            "--no-weight-decay-params",
            str,
            Field("optimizer_config.no_weight_decay_params"),
            arity="some",
        ),
        value("--clip-grad", float, Field("optimizer_config.clip_grad"), 1.0),
        value(
            "--optimizer",
            str,
            Field("optimizer_config.optimizer_type"),
            "adam",
            choices=(
                "adam",
                "adamw",
                "sgd",
                "AdamWeightDecay",
                "AdamW",
                "Adam",
                "mint.AdamW",
                "SpeedAdamW",
                "AdamWZeRO",
                "SGD",
                *_OTHER_OPTIMIZERS,
            ),
            refuses=tuple((name, _NO_OPTIMIZER) for name in _OTHER_OPTIMIZERS),
        ),
        value("--adam-beta1", float, Field("optimizer_config.betas"), 0.9),
        value("--adam-beta2", float, Field("optimizer_config.betas"), 0.999),
        value("--adam-eps", float, Field("optimizer_config.eps"), 1e-8),
        off(
            "--no-decoupled-weight-decay",
            "decoupled_weight_decay",
            Field("optimizer_config.decoupled_weight_decay"),
        ),
        value("--sgd-momentum", float, Field("optimizer_config.sgd_momentum"), 0.9),
    ],
)

LEARNING_RATE = in_group(
    "learning rate",
    [
        value("--lr", float, Field("optimizer_config.learning_rate")),
        value(
            "--lr-decay-style",
            str,
            Field("optimizer_config.lr_decay_style"),
            "linear",
            choices=("constant", "linear", "cosine", "inverse-square-root", "WSD"),
        ),
        value("--lr-decay-iters", int, Field("optimizer_config.lr_decay_iters")),
        value("--lr-decay-samples", int, Field("optimizer_config.lr_decay_samples")),
        value("--lr-warmup-iters", int, Field("optimizer_config.lr_warmup_iters"), 0),
        value("--lr-warmup-samples", int, Field("optimizer_config.lr_warmup_samples"), 0),
        value("--lr-warmup-fraction", float, Field("optimizer_config.lr_warmup_fraction")),
        value("--lr-warmup-init", float, Field("optimizer_config.lr_warmup_init"), 0.0),
        value("--min-lr", float, Field("optimizer_config.min_lr"), 0.0),
        value(
            "--lr-wsd-decay-style",
            str,
            Field("optimizer_config.lr_wsd_decay_style"),
            "exponential",
            choices=("exponential", "linear", "cosine", "minus_sqrt"),
        ),
        value("--lr-wsd-decay-iters", int, Field("optimizer_config.lr_wsd_decay_iters")),
        value("--lr-wsd-decay-samples", int, Field("optimizer_config.lr_wsd_decay_samples")),
        value("--decoupled-lr", float, Field("optimizer_config.decoupled_lr")),
        value("--decoupled-min-lr", float, Field("optimizer_config.decoupled_min_lr")),
        toggle(
            "--use-checkpoint-opt_param-scheduler",
            Field("optimizer_config.use_checkpoint_opt_param_scheduler"),
            False,
            aliases=("--use-checkpoint-opt-param-scheduler", "--use-checkpoint-lr-scheduler"),
        ),
        toggle(
            "--override-opt_param-scheduler",
            Field(
                "optimizer_config.override_opt_param_scheduler",
                also=("optimizer_config.use_checkpoint_opt_param_scheduler",),
            ),
            False,
            aliases=("--override-opt-param-scheduler", "--override-lr-scheduler"),
        ),
    ],
)

VALIDATION = in_group(
    "validation",
    [
        value("--eval-iters", int, Field("training_config.eval_iters"), 100),
        value("--eval-interval", int, Field("training_config.eval_interval"), 1000),
        on("--full-validation", Field("training_config.full_validation")),
        on("--multiple-validation-sets", Field("dataset_config.multiple_validation_sets")),
        values(
            "--validation-set-names", str, Field("training_config.validation_set_names"), "some"
        ),
        on("--test-mode", NoEffect("there are no extra tests inside training")),
    ],
)

_TENSORBOARD = NoEffect("no TensorBoard files are written; the log line holds the figures")
_WANDB = NoEffect("figures are not sent to Weights & Biases; the log line holds them")

LOGGING = in_group(
    "logging",
    [
        value("--log-interval", int, Field("training_config.log_interval"), 100),
        value("--pipeline-timeline", str, Field("training_config.pipeline_timeline")),
        value(
            "--log-style",
            str,
            Field("training_config.log_style"),
            "megatron",
            choices=("megatron", "guide"),
        ),
        on("--log-throughput", Field("training_config.log_throughput")),
        on("--log-params-norm", Field("training_config.log_params_norm")),
        on("--log-num-zeros-in-grad", Field("training_config.log_num_zeros_in_grad")),
        on(
            "--log-progress",
            Field("training_config.log_progress", without_effect="no progress file is written yet"),
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
        value(
            "--tensorboard-dir",
            str,
            Field("training_config.tensorboard_dir", without_effect=_TENSORBOARD.reason),
        ),
        value("--tensorboard-log-interval", int, _TENSORBOARD, 1),
        value("--tensorboard-queue-size", int, _TENSORBOARD, 1000),
        on("--log-timers-to-tensorboard", _TENSORBOARD),
        on("--log-memory-to-tensorboard", _TENSORBOARD),
        on("--log-validation-ppl-to-tensorboard", _TENSORBOARD),
        on("--log-world-size-to-tensorboard", _TENSORBOARD),
        on("--log-batch-size-to-tensorboard", _TENSORBOARD),
        on("--log-learning-rate-to-tensorboard", _TENSORBOARD),
        off("--no-log-loss-scale-to-tensorboard", "log_loss_scale_to_tensorboard", _TENSORBOARD),
        value("--wandb-project", str, _WANDB),
        value("--wandb-exp-name", str, _WANDB),
        value("--wandb-save-dir", str, _WANDB),
        value("--wandb-entity", str, _WANDB),
    ],
)

_GUIDE_PROFILE_SWITCHES = (
    "with_stack",
    "memory",
    "communication",
    "parallel_strategy",
    "l2_cache",
    "hbm_ddr",
    "pcie",
    "data_process",
    "data_simplification",
    "offline_analyse",
)


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


PROFILE = in_group(
    "profiling",
    [
        toggle("--profile", Field("training_config.profile"), False),
        value("--profile-step-start", int, Field("training_config.profile_step_start"), 10),
        value("--profile-step-end", int, Field("training_config.profile_step_end"), 12),
        value("--profile-save-path", str, Field("training_config.profile_save_path")),
        value(
            "--profile-level",
            str,
            Field("training_config.profile_level"),
            choices=("level0", "level1", "level2"),
        ),
        value("--profile-framework", bool_or_word, Field("training_config.profile_framework")),
        value("--profile-aicore-metrics", int, Field("training_config.profile_aicore_metrics")),
        toggle("--profile-op-time", Field("training_config.profile_op_time")),
        value(
            "--profile-dynamic-profiler-config-path",
            str,
            Field("training_config.profile_dynamic_profiler_config_path"),
        ),
        *(
            toggle(_dashed(f"profile_{name}"), Field(f"training_config.profile_{name}"))
            for name in _GUIDE_PROFILE_SWITCHES
        ),
        toggle(
            "--profile-with-memory", Field("training_config.profile_memory"), dest="profile_memory"
        ),
        values(
            "--profile-ranks", int, NoEffect("every rank of the profile is recorded"), arity="some"
        ),
        on("--use-pytorch-profiler", NoEffect("MindSpore's profiler is the only one")),
    ],
)

CONFIGURATION = in_group(
    "configuration files",
    [
        values(
            "--yaml",
            str,
            EntryPoint(
                "YAML file, or model, accelerate and train files; repeatable. Flags win over files."
            ),
            arity="some",
            aliases=("--config",),
            dest="yaml",
        ),
        value(
            "--yaml-cfg",
            str,
            EntryPoint("File in Megatron's own YAML layout, in place of flags. Flags win over it."),
        ),
    ],
)

PLANNING = in_group(
    "dry run",
    [
        on(
            "--dry-run",
            EntryPoint("Print the resolved configuration and what a run would need; start none."),
        ),
        value(
            "--world-size",
            int,
            EntryPoint("With --dry-run: plan for this many ranks. Default: the fewest that fit."),
        ),
        on(
            "--suggest",
            EntryPoint("With --dry-run: search layouts that fit and rank them by step time."),
        ),
        value(
            "--device-memory",
            float,
            EntryPoint("With --dry-run: GiB of memory of one device."),
        ),
        value(
            "--device-tflops",
            float,
            EntryPoint("With --dry-run: peak TFLOP/s of one device in the compute type."),
        ),
        on(
            "--scale-down",
            EntryPoint("Shrink sizes to a laptop's, keep every structural flag, train two steps."),
        ),
    ],
)

ROWS: tuple[Flag, ...] = (
    *CONFIGURATION,
    *PLANNING,
    *LENGTH,
    *REGULARIZATION,
    *LEARNING_RATE,
    *VALIDATION,
    *LOGGING,
    *PROFILE,
)
