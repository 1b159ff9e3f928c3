# SPDX-License-Identifier: Apache-2.0
"""The training run: length, logging, checkpoints, precision and gradient reduction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from mindspeed_ms.config.dataset_config import DatasetConfig
from mindspeed_ms.config.kinds import (
    BatchSchedule,
    Count,
    DecayRate,
    Factor,
    MaybeEmptyText,
    Natural,
    Positive,
    Seed,
)
from mindspeed_ms.config.lora_config import LoraConfig
from mindspeed_ms.config.model_parallel_config import ModelParallelConfig
from mindspeed_ms.config.teaching import Teaching
from mindspeed_ms.config.watching import Watching


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Watching, Teaching):
    """Section ``training_config``: how long to train, what to log and save, in which precision."""

    NAME: ClassVar[str] = "training_config"
    LINKS: ClassVar[frozenset[str]] = frozenset(
        {"parallel_config", "dataset_config", "lora_config"}
    )
    ALIASES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "train_iters": "training_iters",
            "check_for_nan_in_loss_and_grad": "check_for_nan_in_grad",
            "profile_with_memory": "profile_memory",
            "initial_loss_scale": "loss_scale_value",
            "load": "load_checkpoint",
            "save": "output_dir",
            "ckpt_prefix": "prefix",
            "resume_crc_check": "crc_check",
        }
    )

    parallel_config: ModelParallelConfig | None = field(default=None, repr=False, kw_only=False)
    """The run's parallel section."""

    dataset_config: DatasetConfig | None = field(default=None, repr=False, kw_only=False)
    """The run's dataset section."""

    lora_config: LoraConfig | None = field(default=None, repr=False, kw_only=False)
    """The run's adapter section."""

    # --- length
    seed: Seed | None = None
    """Start of all random streams. None: 1234, so that runs repeat."""

    data_parallel_random_init: bool = False
    """Draw dropout (and what else is drawn in training) from streams that differ between
    data-parallel ranks; initial weights stay those of the first. False: all draw the same.
    """

    training_iters: Natural = 0
    """Training steps. 0: given by train_samples or epochs."""

    train_samples: Count | None = None
    """Training sequences; excludes training_iters. None: training_iters counts."""

    epochs: Count | None = None
    """Passes over a user-supplied loader. None: training_iters counts."""

    global_batch_size: Count | None = None
    """Sequences per step over all ranks.

    None: batch_size × micro_batch_num × data-parallel size.
    """

    rampup_batch_size: tuple[int, int, int] | None = None
    """Start, increment and samples over which the global batch grows to global_batch_size.

    None: constant.
    """

    step_batch_size_schedule: BatchSchedule | None = None
    """``"0:16 2.4B:320"``: global batch from each token count on. None: constant."""

    decrease_batch_size_if_needed: bool = False
    """Round the global batch down to what the ranks can share.

    False: refuse one that does not divide.
    """

    exit_interval: Count | None = None
    """Stop after an iteration divisible by this. None: run to the end."""

    exit_duration_in_mins: Count | None = None
    """Save and stop this many minutes after the process began. None: run to the end."""

    exit_signal_handler: bool = False
    """On exit_signal save and stop. False: the signal ends the process at once."""

    exit_signal: Literal["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"] = "SIGTERM"
    """The signal that exit_signal_handler waits for."""

    kill_switch_path: str | None = None
    """Save and stop when there is a file of this name; a run that finds it at its start trains
    nothing. None: no file stops a run.
    """

    iterations_to_skip: tuple[Count, ...] | None = None
    """Iterations, counted from 1, whose samples are read but not trained on. None: none."""

    phase_transition_iterations: tuple[Count, ...] | None = None
    """Iterations at which the run saves and stops, to be continued with other data, which is then
    read from its beginning. None: the data stays.
    """

    skip_train: bool = False
    """Only evaluate. False: train."""

    resume_training: bool = False
    """Continue the run that load_checkpoint holds, iteration and optimizer included.

    False: start at iteration 0.
    """

    new_dataset: bool = False
    """After resuming, start the dataset at its beginning.

    False: go on after the samples already seen.
    """

    # --- evaluation
    eval_interval: Count | None = None
    """Training steps between evaluations. None: no evaluation during training."""

    start_eval_at_iter: Natural = 0
    """First iteration behind which the validation sets are evaluated."""

    eval_global_batch_size: Count | None = None
    """Sequences per step of an evaluation, over all ranks. None: as many as in training."""

    eval_micro_batch_size: Count | None = None
    """Sequences in one micro-batch of an evaluation. None: as many as in training."""

    eval_iters: Natural = 100
    """Evaluation steps each time. 0: no evaluation."""

    full_validation: bool = False
    """Evaluate on the whole validation data once each time. False: on eval_iters steps."""

    validation_set_names: tuple[str, ...] | None = None
    """Names of several validation sets in the log. None: their numbers."""

    eval_metric: str | None = None
    """Metric computed at evaluation beside the loss. None: only loss and perplexity."""

    best_metric_comparison: Literal["less", "less_equal", "greater", "greater_equal"] | None = None
    """Keep a separate checkpoint of the best metric, compared this way. None: not kept."""

    # --- logging
    log_interval: Count | None = None
    """Training steps between log lines. None: every step."""

    log_style: Literal["megatron", "guide", "short"] | None = None
    """Shape of the log line: Megatron's, ``Epoch: E, Step: S, Loss: ...``, or one of at most 120
    characters with tokens per second and the time left. None: the guide's; flags, also beside a
    YAML file, set it to Megatron's. Command lines on a terminal set it to the short one.
    """

    pipeline_timeline: str | None = None
    """File to write the measured timeline of the second iteration to, as a Chrome trace: when each
    pipeline stage computed and waited. None: not written.
    """

    log_throughput: bool = False
    """Add TFLOP/s per device to the log line. False: leave it out."""

    log_energy: bool = False
    """Add the energy that a step takes and the power to the log line, for each rank its share of
    the processors' of all hosts. False: leave them out.
    """

    log_params_norm: bool = False
    """Add the norm of all parameters to the log line. False: leave it out."""

    log_num_zeros_in_grad: bool = False
    """Add the number of zero gradients to the log line. False: leave it out."""

    log_progress: bool = False
    """Append tokens and FLOPs so far to progress.txt beside the checkpoints. False: no file."""

    logging_level: Natural | None = None
    """Level of Python's logging (10 debug, 20 info, 30 warning). None: info."""

    timing_log_level: Literal[0, 1, 2] = 0
    """Detail of the timers: 0 the iteration only, 1 its main parts, 2 every communication."""

    timing_log_option: Literal["max", "minmax", "all"] = "minmax"
    """Timer values over ranks: the largest, both ends, or one per rank."""

    barrier_with_level_1_timing: bool = True
    """Wait for all ranks at the start of level-1 timers, so that they compare. True: wait."""

    tensorboard_dir: str | None = None
    """Folder for TensorBoard files. None: none are written."""

    config_logger_dir: str | None = None
    """Folder in which the first rank writes the whole configuration at start, as config.json. None:
    it is not written.
    """

    dump_param_to_param_group_map: str | None = None
    """JSON file in which the first rank writes at start which group of the optimizer each parameter
    belongs to. None: it is not written.
    """

    # --- checkpoints
    output_dir: str = "./output"
    """Folder of checkpoints and logs."""

    save_checkpoints: bool = True
    """Write checkpoints to output_dir. Megatron flags without ``--save`` set it to False."""

    save_interval: Count | None = None
    """Training steps between checkpoints. None: only at the end."""

    rampup_save_interval: Count | None = None
    """Training steps between checkpoints in place of save_interval, as long as fewer samples are
    consumed than rampup_batch_size names. None: save_interval.
    """

    non_persistent_save_interval: Count | None = None
    """Training steps between checkpoints that the next one replaces, beside those of save_interval,
    which stay. None: there are none.
    """

    save_retain_interval: Count | None = None
    """Keep checkpoints whose iteration this divides, beside the newest.

    None: keep_checkpoint_max decides.
    """

    keep_checkpoint_max: Natural = 5
    """Checkpoints kept; older ones are removed after a new one is complete. 0: all are kept."""

    no_save_optim: bool = False
    """Leave the optimizer state out of checkpoints. False: save it."""

    no_save_rng: bool = False
    """Leave the random states out of checkpoints. False: save them."""

    load_checkpoint: MaybeEmptyText = ""
    """Folder or file to load. Empty: start from initial weights."""

    pretrained_checkpoint: str | None = None
    """Weights to start from (see finetune) while load_checkpoint holds no checkpoint. None: load
    from load_checkpoint only.
    """

    no_load_optim: bool = False
    """Do not load the optimizer state. False: load it when resuming."""

    load_main_params_from_ckpt: bool = False
    """Without the optimizer's state, fill the fp32 master weights with the values of the checkpoint
    themselves. False: with those of the 16-bit weights that were made of them.
    """

    no_load_rng: bool = False
    """Do not load the random states. False: a resumed run goes on bit for bit."""

    finetune: bool = False
    """Load weights only and count from iteration 0. False: load what resume_training asks for."""

    ckpt_step: Count | None = None
    """Iteration to load. None: the newest."""

    override_ckpt_iteration: Natural | None = None
    """Iteration at which a run that is resumed goes on, in its count and its data. None: the
    checkpoint's.
    """

    # --- safety
    check_weight_hash_across_dp_replicas_interval: Natural = 100
    """Training steps between comparisons of the weights of data-parallel replicas.

    They are also compared before each checkpoint. 0: never.
    """

    allow_oversubscription: bool = False
    """Start even if the ranks of a host need more memory by the plan than it has. False: refuse."""

    exit_on_missing_checkpoint: bool | None = None
    """Stop when load_checkpoint holds none. False: start from initial weights and say so; Megatron
    flags without this one mean that. None: stop, unless load_checkpoint is output_dir itself, which
    holds none before the first save.
    """

    use_checkpoint_args: bool = False
    """Take the model's sizes from the checkpoint.

    False: from this configuration, which must agree.
    """

    exit_on_save_failure: bool = True
    """Stop when a checkpoint cannot be written. False: say so and go on until the next one is due;
    the last one must be written.
    """

    async_save: bool = False
    """Write checkpoints in the background. False: training waits."""

    ckpt_format: Literal[
        "ckpt", "safetensors", "torch", "torch_dist", "torch_dcp", "zarr", "fsdp_dtensor"
    ] = "ckpt"
    """Kind of the ranks' files: ``ckpt`` MindSpore's, everything else safetensors. Other formats
    are made from these by ``tools/convert_ckpt``. What is loaded tells its format by itself.
    """

    ckpt_convert_format: Literal["torch", "torch_dist"] | None = None
    """Write what is loaded in this format, for the layout of the run, and do not train: ``torch``
    are Megatron's files, ``torch_dist`` this project's, which a run of any layout reads. None:
    train.
    """

    ckpt_convert_save: str | None = None
    """Folder in which ckpt_convert_format makes a folder of the format's name. None: must be given
    with it.
    """

    prefix: str = "network"
    """Start of the names of files that tools/convert_ckpt writes for MindSpore. Checkpoints of a
    run are named by iteration and rank.
    """

    crc_check: bool = False
    """Compare the checksum of every file after writing and before loading. False: checksums are
    stored, but only sizes and the digests of what was loaded are compared.
    """

    # --- precision
    fp16: bool = False
    """Train in float16 with fp32 master weights and loss scaling. False: off."""

    bf16: bool = False
    """Train in bfloat16 with fp32 master weights. False: off."""

    loss_scale: Positive | None = None
    """Constant loss scale. None: dynamic with fp16, otherwise 1."""

    loss_scale_value: Positive | None = None
    """First value of the dynamic loss scale. None: 2**32."""

    loss_scale_factor: Factor | None = None
    """Growth factor of the dynamic loss scale in YAML; from flags it repeats ``--hysteresis``, as
    the guide maps it. None: 2.
    """

    loss_scale_growth_factor: Factor | None = None
    """Factor the loss scale really grows by.

    None: loss_scale_factor, or 2. Flags always mean 2, as in Megatron.
    """

    loss_scale_window: Count | None = None
    """Steps without overflow before the loss scale grows. None: 1000."""

    min_loss_scale: Positive = 1.0
    """Smallest dynamic loss scale."""

    hysteresis: Count = 2
    """Overflows tolerated before the loss scale is halved."""

    accumulate_allreduce_grads_in_fp32: bool = False
    """Keep and reduce gradients in float32.

    False: in the parameters' type. bf16 sets it to True.
    """

    check_for_nan_in_grad: bool = True
    """Stop when a loss or gradient is not a number, or when steps overflow without end. False: say
    so and go on; checkpoints with such numbers are marked. Megatron flags set it to False for fp16
    with a dynamic loss scale.
    """

    # --- loss
    loss_reduction: Literal["mean", "sum"] = "mean"
    """How the losses of the tokens of a micro-batch are joined; the log shows their mean."""

    label_smoothing: DecayRate = 0.0
    """Share of the target's probability that is spread evenly over the vocabulary."""

    calculate_per_token_loss: bool = False
    """Divide once by all tokens of the step. False: mean of the micro-batches' means."""

    # --- gradients over data-parallel ranks
    wrap_with_ddp: bool = False
    """Keep gradients in flat buffers that are reduced in buckets. Megatron flags set it to True."""

    use_distributed_optimizer: bool = False
    """Shard the optimizer state over the data-parallel ranks. False: every rank holds all of it."""

    overlap_grad_reduce: bool = False
    """Reduce a bucket as soon as its gradients are complete. False: all at the end of backward."""

    delay_grad_reduce: bool = False
    """Start that reduction together on all pipeline stages but the first.

    False: each stage when ready.
    """

    bucket_size: Count | None = None
    """Elements per bucket with overlap_grad_reduce.

    None: max(40 000 000, 1 000 000 × data-parallel size).
    """

    ddp_average_in_collective: bool = False
    """Average inside the collective. False: scale gradients before a sum."""

    ddp_num_buckets: Count | None = None
    """Buckets with overlap_grad_reduce; another way to state bucket_size. None: bucket_size counts.
    """

    ddp_pad_buckets_for_high_nccl_busbw: bool = False
    """Make buckets of the distributed optimizer multiples of 2**16 elements. False: of 128."""

    enable_mem_align: bool = False
    """Start every parameter of a buffer on a 512-byte boundary. False: packed."""

    # --- profiler
    profile: bool = False
    """Record a profile. False: off."""

    profile_save_path: str | None = None
    """Folder of profiles. None: ``profile`` below output_dir."""

    profile_step_start: Natural = 1
    """First step recorded."""

    profile_step_end: Natural = 5
    """Last step recorded."""

    profile_level: Literal["level0", "level1", "level2"] = "level0"
    """Detail of the profile. On CPU level1 adds shapes to operators, level2 the cells as well."""

    profile_with_stack: bool = False
    """Record call stacks."""

    profile_memory: bool = False
    """Record memory use."""

    profile_framework: bool | Literal["all", "time", "None"] = False
    """Record what lies above operators: on CPU the forward of every cell. False: off."""

    profile_communication: bool = False
    """Also write sums over communication: bytes, waiting, moving. On an NPU: its links."""

    profile_parallel_strategy: bool = False
    """Record the parallel layout."""

    profile_aicore_metrics: Literal[-1, 0, 1, 2, 3, 4, 5, 6] = 0
    """Group of AI-core counters; -1: none."""

    profile_l2_cache: bool = False
    """Record the level-2 cache."""

    profile_hbm_ddr: bool = False
    """Record memory bandwidth."""

    profile_pcie: bool = False
    """Record PCIe traffic."""

    profile_data_process: bool = False
    """Record data loading."""

    profile_data_simplification: bool = False
    """Keep the merged profile only, not what each rank recorded."""

    profile_op_time: bool = True
    """Record the time of each operator."""

    profile_offline_analyse: bool = False
    """Only record; analyse later."""

    profile_dynamic_profiler_config_path: MaybeEmptyText = ""
    """JSON file with start_step and stop_step, read again when it changes. Empty: not used."""

    @property
    def mem_align_bytes(self) -> int:
        """Every parameter of a buffer starts at a multiple of this many bytes."""
        return 512 if self.enable_mem_align else 1

    def overlaps_reduction(self, stage: int) -> bool:
        """Whether a pipeline stage reduces gradients during its backward."""
        return self.overlap_grad_reduce and not (self.delay_grad_reduce and stage > 0)

    def elements_of_bucket(self, num_parameters: int) -> int | None:
        """Elements after which a bucket closes, on a rank with so many; None: it is not stated."""
        if self.ddp_num_buckets is None:
            return self.bucket_size
        return max(1, num_parameters // self.ddp_num_buckets)

    @property
    def check_for_nan_in_loss_and_grad(self) -> bool:
        """Megatron's name of check_for_nan_in_grad."""
        return self.check_for_nan_in_grad

    @property
    def is_dynamic_loss_scale(self) -> bool:
        """Whether the loss scale follows overflows."""
        return self.fp16 and self.loss_scale is None

    def save_interval_at(self, consumed_samples: int) -> int | None:
        """Training steps between checkpoints where so many samples are consumed."""
        if self.rampup_batch_size is None or consumed_samples >= self.rampup_batch_size[2]:
            return self.save_interval
        return self.rampup_save_interval or self.save_interval

    def _resolve(self) -> None:
        self._fill("profile_save_path", f"{self.output_dir.rstrip('/')}/profile")
        self._fill("loss_scale_growth_factor", self.loss_scale_factor or 2.0)

    def _check(self) -> None:
        for name in ("load_checkpoint", "output_dir"):
            if "://" in getattr(self, name):
                raise ValueError(
                    f"{name} {getattr(self, name)} is a URL; checkpoints are read and written in "
                    "mounted file systems: mount the bucket, or copy the checkpoint"
                )
        self._check_precision()
        self._check_gradient_buffers()
        self._check_length()
        self._check_watching()
        self._check_teaching()
        if self.profile_step_end < self.profile_step_start:
            raise ValueError(
                f"profile_step_end ({self.profile_step_end}) must not be smaller than "
                "profile_step_start "
                f"({self.profile_step_start}); exchange them or raise the end"
            )

    def _check_precision(self) -> None:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 are both set, but exclude each other; keep one")

    def _check_gradient_buffers(self) -> None:
        if not self.wrap_with_ddp:
            for name in ("use_distributed_optimizer", "overlap_grad_reduce", "bucket_size"):
                if getattr(self, name):
                    raise ValueError(
                        f"training_config.{name} needs the flat gradient buffers; set "
                        "wrap_with_ddp: True "
                        f"or leave {name} out"
                    )
        if self.bucket_size is not None and self.ddp_num_buckets is not None:
            raise ValueError(
                f"bucket_size ({self.bucket_size}) and ddp_num_buckets ({self.ddp_num_buckets}) "
                "both state how gradients are cut; keep one"
            )
        if self.delay_grad_reduce and not self.overlap_grad_reduce:
            raise ValueError(
                "delay_grad_reduce needs overlap_grad_reduce; set overlap_grad_reduce: True or "
                "leave it out"
            )

    def _check_length(self) -> None:
        if self.train_samples is not None and self.training_iters:
            raise ValueError(
                f"training_iters ({self.training_iters}) and train_samples ({self.train_samples}) "
                "both state the length; "
                f"keep one"
            )
        if self.rampup_batch_size is None:
            return
        start, step, samples = self.rampup_batch_size
        if min(start, step, samples) < 1:
            raise ValueError(
                f"rampup_batch_size {self.rampup_batch_size} must hold three numbers of at least "
                "1: "
                f"start, increment, samples; correct the one that is not"
            )
        if self.global_batch_size is None:
            raise ValueError(
                "rampup_batch_size needs global_batch_size, the size it grows to; give "
                "global_batch_size"
            )
        if self.global_batch_size < start or (self.global_batch_size - start) % step:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be the rampup start ({start}) "
                "plus a multiple of "
                f"its increment ({step}); change one of them"
            )
