"""Flags of data, tokenizer and checkpoints."""

from __future__ import annotations

from mindspeed_ms.training.flags.row import (
    Field,
    Flag,
    NoEffect,
    Refused,
    in_group,
    off,
    on,
    toggle,
    value,
    values,
)

DATA = in_group(
    "data",
    [
        values("--data-path", str, Field("dataset_config.data_path")),
        value("--split", str, Field("dataset_config.split")),
        values("--train-data-path", str, Field("dataset_config.train_data_path")),
        values("--valid-data-path", str, Field("dataset_config.valid_data_path")),
        values("--test-data-path", str, Field("dataset_config.test_data_path")),
        value("--data-args-path", str, Field("dataset_config.data_args_path")),
        value("--per-split-data-args-path", str, Field("dataset_config.per_split_data_args_path")),
        value("--data-cache-path", str, Field("dataset_config.data_cache_path")),
        on("--mock-data", Field("dataset_config.mock_data")),
        value(
            "--num-dataset-builder-threads",
            int,
            Field("dataset_config.num_dataset_builder_threads"),
            1,
        ),
        value(
            "--mid-level-dataset-surplus",
            float,
            Field("dataset_config.mid_level_dataset_surplus"),
            0.005,
        ),
        value(
            "--per-dataset-sequences-path", str, Field("dataset_config.per_dataset_sequences_path")
        ),
        on(
            "--dataloader-fast-cache-load",
            NoEffect("index files are mapped, and built by the first rank of a host only"),
        ),
        on(
            "--dataloader-defer-npy-index-mmap",
            NoEffect("mapping an index file reads none of it"),
        ),
        value(
            "--object-storage-cache-path",
            str,
            Refused("data is read from mounted file systems only", "mount the bucket"),
            aliases=("--s3-cache-path",),
        ),
        on("--allow-ambiguous-pad-tokens", Field("dataset_config.allow_ambiguous_pad_tokens")),
        off("--no-mmap-bin-files", "mmap_bin_files", Field("dataset_config.mmap_bin_files")),
        value(
            "--dataloader-type",
            str,
            Field("dataset_config.dataloader_type"),
            choices=("single", "cyclic", "external"),
        ),
        off("--no-data-sharding", "data_sharding", Field("dataset_config.data_sharding")),
        value("--num-workers", int, Field("dataset_config.num_workers"), 2),
        toggle("--reset-position-ids", Field("dataset_config.reset_position_ids"), False),
        toggle("--reset-attention-mask", Field("dataset_config.reset_attention_mask"), False),
        toggle("--eod-mask-loss", Field("dataset_config.eod_mask_loss"), False),
        off(
            "--no-create-attention-mask-in-dataloader",
            "create_attention_mask_in_dataloader",
            Field("dataset_config.create_attention_mask"),
        ),
        value("--pad-token-id", int, Field("dataset_config.pad_token_id")),
        value("--eos-token-id", int, Field("dataset_config.eos_token_id")),
        toggle("--drop-remainder", Field("dataset_config.drop_remainder")),
    ],
)

SAMPLES = in_group(
    "kinds of samples",
    [
        on("--sft", Field("dataset_config.sft")),
        value(
            "--sft-tokenizer-prompt-format",
            str,
            Field("dataset_config.sft_tokenizer_prompt_format"),
            "nemotron-h-aligned",
        ),
        on("--fim-data", Field("dataset_config.fim_data")),
        value("--fim-rate", float, Field("dataset_config.fim_rate"), 0.5),
        value("--fim-spm-rate", float, Field("dataset_config.fim_spm_rate"), 0.5),
        value("--fim-split-sample", str, Field("dataset_config.fim_split_sample")),
        value("--fim-fragment-rate", float, Field("dataset_config.fim_fragment_rate")),
        value("--fim-no-prefix", str, Field("dataset_config.fim_no_prefix")),
        value("--fim-prefix-token", str, Field("dataset_config.fim_prefix_token"), "<fim_prefix>"),
        value("--fim-middle-token", str, Field("dataset_config.fim_middle_token"), "<fim_middle>"),
        value("--fim-suffix-token", str, Field("dataset_config.fim_suffix_token"), "<fim_suffix>"),
        value("--fim-pad-token", str, Field("dataset_config.fim_pad_token"), "<fim_pad>"),
        value("--fim-eod-token", str, Field("dataset_config.fim_eod_token"), "<|endoftext|>"),
    ],
)

TOKENIZER = in_group(
    "tokenizer",
    [
        value("--tokenizer-type", str, Field("dataset_config.tokenizer_type")),
        value(
            "--tokenizer-model",
            str,
            Field("dataset_config.tokenizer_model"),
            aliases=("--tokenizer-name-or-path",),
        ),
        value("--vocab-file", str, Field("dataset_config.vocab_file")),
        value("--merge-file", str, Field("dataset_config.merge_file")),
        on("--trust-remote-code", Field("dataset_config.trust_remote_code")),
        off(
            "--tokenizer-hf-no-use-fast",
            "tokenizer_use_fast",
            Field("dataset_config.tokenizer_use_fast"),
        ),
        value(
            "--tiktoken-pattern",
            str,
            Field("dataset_config.tiktoken_pattern"),
            choices=("v1", "v2"),
        ),
        value(
            "--tiktoken-num-special-tokens",
            int,
            Field("dataset_config.tiktoken_num_special_tokens"),
            1000,
        ),
        values(
            "--tiktoken-special-tokens",
            str,
            Field("dataset_config.tiktoken_special_tokens"),
            "some",
            aliases=("--tokenizer-special-tokens",),
        ),
        value("--vocab-extra-ids", int, Field("dataset_config.vocab_extra_ids"), 0),
        value(
            "--vocab-size",
            int,
            Field("dataset_config.vocab_size", also=("model_config.vocab_size",)),
        ),
    ],
)

_SHARDED = NoEffect("checkpoints are written per rank and re-sharded on load")

CHECKPOINTS = in_group(
    "checkpointing",
    [
        value(
            "--save",
            str,
            Field(
                "training_config.output_dir",
                also=("training_config.save_checkpoints",),
            ),
        ),
        value(
            "--save-interval",
            int,
            Field("training_config.save_interval"),
            aliases=("--persistent-save-interval",),
        ),
        value("--save-retain-interval", int, Field("training_config.save_retain_interval")),
        value("--keep-checkpoint-max", int, Field("training_config.keep_checkpoint_max")),
        on("--no-save-optim", Field("training_config.no_save_optim")),
        on("--no-save-rng", Field("training_config.no_save_rng")),
        value(
            "--load",
            str,
            Field("training_config.load_checkpoint", also=("training_config.resume_training",)),
        ),
        toggle("--no-load-optim", Field("training_config.no_load_optim"), False),
        toggle("--no-load-rng", Field("training_config.no_load_rng"), False),
        on(
            "--finetune",
            Field("training_config.finetune", also=("training_config.resume_training",)),
        ),
        toggle("--resume-training", Field("training_config.resume_training")),
        toggle("--resume-crc-check", Field("training_config.crc_check"), False),
        toggle("--new-dataset", Field("training_config.new_dataset"), False),
        value("--ckpt-prefix", str, Field("training_config.prefix")),
        value("--ckpt-step", int, Field("training_config.ckpt_step")),
        value(
            "--ckpt-format",
            str,
            Field("training_config.ckpt_format"),
            "torch_dist",
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
        on("--exit-on-missing-checkpoint", Field("training_config.exit_on_missing_checkpoint")),
        on("--use-checkpoint-args", Field("training_config.use_checkpoint_args")),
        on("--async-save", Field("training_config.async_save")),
        on("--use-persistent-ckpt-worker", _SHARDED),
        value("--dist-ckpt-strictness", str, _SHARDED, "assume_ok_unexpected"),
        on("--dist-ckpt-optim-fully-reshardable", _SHARDED),
        on("--dist-ckpt-save-pre-mcore-014", _SHARDED),
        on("--ckpt-fully-parallel-save", _SHARDED, dest="ckpt_fully_parallel_save_deprecated"),
        off("--no-ckpt-fully-parallel-save", "ckpt_fully_parallel_save", _SHARDED),
        on("--ckpt-fully-parallel-load", _SHARDED),
        on("--ckpt-assume-constant-structure", _SHARDED),
        on("--auto-detect-ckpt-format", NoEffect("the format of a checkpoint is always detected")),
    ],
)

ROWS: tuple[Flag, ...] = (*DATA, *SAMPLES, *TOKENIZER, *CHECKPOINTS)
