# SPDX-License-Identifier: Apache-2.0
"""Flags of data: files, samples, tokenizer."""

from __future__ import annotations

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import (
    Field,
    Flag,
    NoEffect,
    Refused,
    asked_means,
    in_group,
    off,
    on,
    toggle,
    value,
    values,
)

PATHS = {
    "--data-path": "data_path",
    "--train-data-path": "train_data_path",
    "--valid-data-path": "valid_data_path",
    "--test-data-path": "test_data_path",
}
"""Flags that name files of tokens -> attribute."""


def _replaced_by(dest: str) -> tuple[str, ...]:
    """Paths of a file that a path on the command line replaces: one source, or one per split."""
    per_split = tuple(other for other in PATHS.values() if other != "data_path")
    return per_split if dest == "data_path" else ("data_path",)


_TOKENIZED = NoEffect("text becomes tokens in tools/preprocess_data.py, before training")

_OLD_FILES = Refused(
    "files of this old kind are not read", "prepare the data with tools/preprocess_data.py"
)

DATA = in_group(
    "data",
    [
        *(
            values(
                name,
                str,
                Field(
                    "dataset_config." + dest,
                    clears=("mock_data", *_replaced_by(dest)),
                ),
                small=None,
                common=dest == "data_path",
            )
            for name, dest in PATHS.items()
        ),
        value(
            "--data-impl",
            str,
            NoEffect("files are .bin/.idx pairs, and are mapped"),
            "infer",
            choices=("mmap", "infer", "lazy", "cached"),
            refuses=tuple((kind, _OLD_FILES) for kind in ("lazy", "cached")),
        ),
        value("--split", str, Field("dataset_config.split"), small=None, common=True),
        value("--data-args-path", str, Field("dataset_config.data_args_path"), small=None),
        value(
            "--per-split-data-args-path",
            str,
            Field("dataset_config.per_split_data_args_path"),
            small=None,
        ),
        value(
            "--data-cache-path",
            str,
            Field("dataset_config.data_cache_path"),
            small=None,
        ),
        on(
            "--mock-data",
            Field("dataset_config.mock_data", clears=tuple(PATHS.values())),
            small=True,
            common=True,
        ),
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
            "--per-dataset-sequences-path",
            str,
            Field("dataset_config.per_dataset_sequences_path"),
            small=None,
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
            Field("dataset_config.object_storage_cache_path"),
            aliases=("--s3-cache-path",),
            small=None,
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
        value("--num-workers", int, Field("dataset_config.num_workers"), 2, small=0, common=True),
        toggle("--reset-position-ids", Field("dataset_config.reset_position_ids"), False),
        toggle("--reset-attention-mask", Field("dataset_config.reset_attention_mask"), False),
        on(
            "--dataloader-inter-document-masking",
            Field(
                "dataset_config.reset_attention_mask",
                means=True,
                sets={"dataset_config.reset_position_ids": asked_means(True)},
            ),
            help="Same as --reset-attention-mask --reset-position-ids: documents of a sample, "
            "which end with the end-of-document token, do not see each other.",
        ),
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
        on("--sft", Field("dataset_config.sft"), small=False),
        value(
            "--sft-tokenizer-prompt-format",
            str,
            Field("dataset_config.sft_tokenizer_prompt_format"),
            "nemotron-h-aligned",
        ),
        on("--fim-data", Field("dataset_config.fim_data"), small=False),
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
        value(
            "--tokenizer-type",
            str,
            Field("dataset_config.tokenizer_type", also=("model_config.vocab_size",)),
            small="NullTokenizer",
            common=True,
        ),
        value(
            "--tokenizer-model",
            str,
            Field("dataset_config.tokenizer_model"),
            aliases=("--tokenizer-name-or-path", "--tokenizer-path"),
            small=None,
            common=True,
        ),
        value("--vocab-file", str, Field("dataset_config.vocab_file"), small=None),
        value("--merge-file", str, Field("dataset_config.merge_file"), small=None),
        on("--trust-remote-code", Field("dataset_config.trust_remote_code")),
        off(
            "--tokenizer-hf-no-use-fast",
            "tokenizer_use_fast",
            Field("dataset_config.tokenizer_use_fast"),
            aliases=("--tokenizer-not-use-fast",),
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
        on(
            "--tokenizer-sentencepiece-legacy",
            Field("dataset_config.tokenizer_sentencepiece_legacy"),
        ),
        off(
            "--no-tokenizer-sentencepiece-ignore-extra-whitespaces",
            "tokenizer_sentencepiece_ignore_extra_whitespaces",
            Field("dataset_config.tokenizer_sentencepiece_ignore_extra_whitespaces"),
            aliases=("--disable-tokenizer-sentencepiece-ignore-extra-whitespaces",),
        ),
        off(
            "--no-pad-vocab-size",
            "pad_vocab_size",
            Field("dataset_config.pad_vocab_size", also=("model_config.vocab_size",)),
            aliases=("--disable-pad-vocab-size",),
        ),
        value(
            "--null-tokenizer-eod-id",
            int,
            Field("dataset_config.null_tokenizer_eod_id"),
        ),
        value(
            "--null-tokenizer-pad-id",
            int,
            Field("dataset_config.null_tokenizer_pad_id"),
            -1,
        ),
        value("--vocab-extra-ids", int, Field("dataset_config.vocab_extra_ids"), 0),
        value(
            "--vocab-size",
            int,
            Field("dataset_config.vocab_size", also=("model_config.vocab_size",)),
            small=255,
            common=True,
        ),
    ],
)

ROWS: tuple[Flag, ...] = (
    *DATA,
    *SAMPLES,
    *TOKENIZER,
    *compact(
        "data",
        NoEffect("Megatron's question answering tasks read it, which are no part of pretraining"),
        "--sample-rate float=1.0",
    ),
    *compact(
        "tokenizer",
        NoEffect(
            "training writes no chats by templates: --sft follows --sft-tokenizer-prompt-format, "
            "and the server has a --chat-template of its own"
        ),
        "--chat-template str",
    ),
    *compact("data", NoEffect("files are mapped when they are first read"), "--mmap-warmup"),
    *compact(
        "tokenizer",
        _TOKENIZED,
        """
--legacy-tokenizer
--special-tokens-file str
--tokenizer-hf-use-fast
--tokenizer-hf-include-special-tokens
--tokenizer-hf-no-include-special-tokens
--tokenizer-metadata str >metadata_path
--save-tokenizer-assets negative
--use-tokenizer-model-from-checkpoint-args negative
""",
    ),
)
