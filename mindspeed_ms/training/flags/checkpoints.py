# SPDX-License-Identifier: Apache-2.0
"""Flags of checkpoints: where, when and what is saved and loaded."""

from __future__ import annotations

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import (
    EntryPoint,
    Field,
    Flag,
    NoEffect,
    Refused,
    asked_means,
    given_means,
    in_group,
    off,
    on,
    or_never,
    toggle,
    value,
)

_SHARDED = NoEffect("checkpoints are written per rank and re-sharded on load")
_STRICT = NoEffect(
    "tensors that a checkpoint lacks, or has beyond the model's, are always an error that names "
    "them (raise_all); --no-load-optim leaves the optimizer's out"
)
_TEMPORARY = NoEffect(
    "those of --non-persistent-save-interval lie in --save beside the others, so that --load finds "
    "the newest, and go when a later one is complete"
)
_WHEN_SAVED = NoEffect("checkpoints follow --save-interval only")

CHECKPOINTS = in_group(
    "checkpointing",
    [
        value(
            "--save",
            str,
            Field(
                "training_config.output_dir",
                back=lambda folder, read: (
                    folder if read("training_config.save_checkpoints") else None
                ),
                sets={"training_config.save_checkpoints": lambda folder: folder is not None},
            ),
            small=None,
            common=True,
        ),
        value(
            "--save-interval",
            int,
            or_never("training_config.save_interval"),
            aliases=("--persistent-save-interval",),
            small=None,
            common=True,
        ),
        value(
            "--rampup-save-interval",
            int,
            Field("training_config.rampup_save_interval"),
            small=None,
        ),
        on(
            "--save-when-num-microbatches-change",
            NoEffect("before a step with more micro-batches a checkpoint is always written"),
        ),
        value(
            "--save-retain-interval",
            int,
            Field(
                "training_config.save_retain_interval",
                sets={"training_config.keep_checkpoint_max": given_means(1)},
            ),
        ),
        value(
            "--non-persistent-save-interval",
            int,
            Field(
                "training_config.non_persistent_save_interval",
                sets={"training_config.keep_checkpoint_max": given_means(1)},
            ),
            small=None,
        ),
        value(
            "--non-persistent-ckpt-type",
            str,
            _TEMPORARY,
            choices=("global", "local", "in_memory"),
            refuses=(
                (
                    "in_memory",
                    Refused("a checkpoint is a folder of files", "use global, as in Megatron"),
                ),
            ),
        ),
        value("--keep-checkpoint-max", int, Field("training_config.keep_checkpoint_max"), 0),
        on("--no-save-optim", Field("training_config.no_save_optim")),
        on("--no-save-rng", Field("training_config.no_save_rng")),
        on(
            "--finetune",
            Field(
                "training_config.finetune",
                sets={"training_config.resume_training": asked_means(False)},
            ),
            small=False,
            common=True,
        ),
        value(
            "--load",
            str,
            Field(
                "training_config.load_checkpoint",
                back=lambda folder, _: folder or None,
                sets={"training_config.resume_training": asked_means(True)},
            ),
            small=None,
            common=True,
        ),
        value(
            "--pretrained-checkpoint",
            str,
            Field("training_config.pretrained_checkpoint"),
            small=None,
        ),
        toggle("--no-load-optim", Field("training_config.no_load_optim"), False),
        on(
            "--load-main-params-from-ckpt",
            Field("training_config.load_main_params_from_ckpt"),
        ),
        toggle("--no-load-rng", Field("training_config.no_load_rng"), False),
        toggle(
            "--resume-training",
            # Off is what a file says that says nothing; a --load on the command line then resumes.
            Field("training_config.resume_training", back=lambda is_on, _: is_on or None),
        ),
        toggle(
            "--resume-crc-check",
            Field("training_config.crc_check"),
            False,
            attributes=("verify_integrity",),
        ),
        on(
            "--verify-integrity",
            Field("training_config.crc_check"),
            dest="resume_crc_check",
            help="Same as --resume-crc-check.",
        ),
        toggle("--new-dataset", Field("training_config.new_dataset"), False),
        value("--ckpt-prefix", str, Field("training_config.prefix")),
        value("--ckpt-step", int, Field("training_config.ckpt_step")),
        value(
            "--ckpt-convert-format",
            str,
            Field("training_config.ckpt_convert_format"),
            choices=("torch", "torch_dist"),
            small=None,
        ),
        value("--ckpt-convert-save", str, Field("training_config.ckpt_convert_save"), small=None),
        value(
            "--override-ckpt-iteration",
            int,
            Field("training_config.override_ckpt_iteration"),
            small=None,
        ),
        value(
            "--ckpt-format",
            str,
            Field("training_config.ckpt_format"),
            "torch_dist",
            common=True,
            choices=(
                "ckpt",
                "safetensors",
                "torch",
                "torch_dist",
                "torch_dcp",
                "zarr",
                "fsdp_dtensor",
            ),
        ),
        on("--exit-on-save-failure", Field("training_config.exit_on_save_failure"), default=True),
        off(
            "--no-exit-on-save-failure",
            "exit_on_save_failure",
            Field("training_config.exit_on_save_failure"),
        ),
        on("--exit-on-missing-checkpoint", Field("training_config.exit_on_missing_checkpoint")),
        on(
            "--use-checkpoint-args",
            Field("training_config.use_checkpoint_args"),
            small=False,
        ),
        on(
            "--use-mp-args-from-checkpoint-args",
            EntryPoint(
                "With --use-checkpoint-args: also take tensor, pipeline, virtual pipeline and "
                "expert parallel sizes from the checkpoint."
            ),
        ),
        on("--async-save", Field("training_config.async_save")),
        on("--use-persistent-ckpt-worker", _SHARDED),
        value("--dist-ckpt-strictness", str, _STRICT, "assume_ok_unexpected"),
        on("--dist-ckpt-optim-fully-reshardable", _SHARDED),
        on("--dist-ckpt-save-pre-mcore-014", _SHARDED),
        on("--ckpt-fully-parallel-save", _SHARDED, dest="ckpt_fully_parallel_save_deprecated"),
        off("--no-ckpt-fully-parallel-save", "ckpt_fully_parallel_save", _SHARDED),
        on("--ckpt-fully-parallel-load", _SHARDED),
        on("--ckpt-assume-constant-structure", _SHARDED),
        on("--auto-detect-ckpt-format", NoEffect("the format of a checkpoint is always detected")),
    ],
)

ROWS: tuple[Flag, ...] = (
    *CHECKPOINTS,
    *compact(
        "checkpointing",
        _SHARDED,
        """
--use-dist-ckpt >use_dist_ckpt_deprecated
--dist-ckpt-format str >dist_ckpt_format_deprecated
--dist-ckpt-workers int=1
--disable-ckpt-fully-parallel-save off >ckpt_fully_parallel_save
--ckpt-fully-parallel-load-exchange-algo str=broadcast
--ckpt-fully-parallel-load-per-rank-objects
--ckpt-fully-parallel-load-process-group str=dp
--ckpt-fully-parallel-save-process-group str=dp
--ckpt-load-validate-sharding-integrity negative
--ckpt-drop-redundant-extra-state
--ckpt-pg-tensors-cache-create
--ckpt-pg-tensors-cache-path str
--distrib-optim-fully-reshardable-mem-efficient
--async-strategy str=nvrx
--async-ckpt-cpu-priority int=10
--async-ckpt-io-priority int=3
--async-ckpt-use-cpu-shm
""",
    ),
    *compact(
        "checkpointing",
        _TEMPORARY,
        """
--non-persistent-global-ckpt-dir str
--non-persistent-local-ckpt-algo str=fully_parallel
--non-persistent-local-ckpt-dir str
""",
    ),
    *compact(
        "checkpointing",
        _WHEN_SAVED,
        """
--replication
--replication-factor int=2
--replication-jump int
""",
    ),
)
