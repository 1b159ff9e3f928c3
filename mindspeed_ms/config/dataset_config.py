# SPDX-License-Identifier: Apache-2.0
"""Where the tokens come from and how they become micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from mindspeed_ms.config.kinds import Blend, Count, Natural, Share, Split, Threads, TokenId, Workers
from mindspeed_ms.config.section import Section

DEFAULT_SPLIT = "969, 30, 1"
"""Shares of train, validation and test when a data path is given without a split."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Section):
    """Section ``dataset_config``: data files, tokenizer, masks and micro-batches."""

    NAME: ClassVar[str] = "dataset_config"
    ALIASES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"micro_batch_size": "batch_size", "tokenizer_name_or_path": "tokenizer_model"}
    )

    # --- batches
    batch_size: Count = 1
    """Sequences in one micro-batch on one rank."""

    micro_batch_num: Count = 1
    """Micro-batches per training step on one rank.

    training_config.global_batch_size, when given, decides instead.
    """

    drop_remainder: bool = True
    """Drop the sequences at the end of the data that do not fill a step. True: drop."""

    dataloader_type: Literal["single", "cyclic", "external"] = "single"
    """Order of samples: ``single`` walks once in the dataset's order, ``cyclic`` reshuffles every
    epoch.
    """

    data_sharding: bool = True
    """With ``cyclic``: each data-parallel rank shuffles its own share. False: all shuffle together.
    """

    shuffle: bool = False
    """Shuffle samples of a dataset that brings no order of its own. False: keep its order."""

    num_workers: Workers = 2
    """Processes that prepare batches ahead of the step. 0: prepare in the training process."""

    data_layout: Literal["BSH", "SBH"] = "BSH"
    """Axis order a user's dataset delivers.

    Inside the model activations are always [sequence, batch, hidden].
    """

    # --- files
    data_path: Blend | None = None
    """Prefix of the ``.bin/.idx`` pair, or a blend as weight, prefix, weight, prefix.

    None: no common source.
    """

    split: Split | None = None
    """Shares of train, validation and test documents of data_path, e.g.

    ``949,50,1``. None: 969, 30, 1.
    """

    train_data_path: Blend | None = None
    """Training data apart from data_path. None: take it from data_path."""

    valid_data_path: Blend | None = None
    """Validation data apart from data_path. None: take it from data_path."""

    test_data_path: Blend | None = None
    """Test data apart from data_path. None: take it from data_path."""

    data_args_path: str | None = None
    """File that holds the words of data_path, for blends too long for a command line.

    None: not used.
    """

    per_split_data_args_path: str | None = None
    """JSON file with one blend per split. None: not used."""

    data_cache_path: str | None = None
    """Folder for the sample index files. None: ``cache/`` beside the data."""

    object_storage_cache_path: str | None = None
    """Folder for the ``.idx`` files of datasets in object storage (``s3://``, ``obs://``), which
    are copied there once. None: there are no such datasets.
    """

    mid_level_dataset_surplus: Share = 0.005
    """Share of samples each corpus of a weighted blend prepares beyond its target."""

    multiple_validation_sets: bool = False
    """Evaluate every corpus of valid_data_path by itself. False: blend them."""

    per_dataset_sequences_path: str | None = None
    """JSON file, prefix -> number of sequences it must have. None: not checked."""

    num_dataset_builder_threads: Threads = 1
    """Threads that build the index files of a blend."""

    mmap_bin_files: bool = True
    """Map the ``.bin`` file into memory. False: read each sample with file reads."""

    mock_data: bool = False
    """Train on generated token sequences; no file is read. False: real data."""

    # --- tokenizer
    tokenizer_type: str | None = None
    """Kind of tokenizer, by Megatron's names (GPTSentencePieceTokenizer, NullTokenizer, ...).

    None: none needed.
    """

    tokenizer_model: str | None = None
    """File or folder of the tokenizer's model. None: the type needs none."""

    tokenizer_use_fast: bool = True
    """Take the compiled implementation of a Hugging Face tokenizer. True: where it exists."""

    trust_remote_code: bool = False
    """Run Python code that lies in a Hugging Face tokenizer's folder. False: never."""

    tiktoken_pattern: str | None = None
    """How TikTokenizer cuts a text before merging: v1 or v2. None: the type needs none."""

    tiktoken_num_special_tokens: Natural = 1000
    """Token ids at the start of TikTokenizer's vocabulary that no text becomes."""

    tiktoken_special_tokens: tuple[str, ...] | None = None
    """Names of the first of them. None: <unk>, <s>, </s>."""

    sft_tokenizer_prompt_format: str = "nemotron-h-aligned"
    """How SFTTokenizer writes a conversation: nemotron-h-aligned, nemotron-nano-v2 or chatml."""

    tokenizer_sentencepiece_legacy: bool = False
    """Let the spelling of tiktoken_special_tokens become tokens of a SentencePiece tokenizer; those
    that the model lacks are added behind it. False: no such tokens.
    """

    tokenizer_sentencepiece_ignore_extra_whitespaces: bool = True
    """Read several spaces as one where a SentencePiece model does. False: keep each of them."""

    null_tokenizer_eod_id: Natural | None = None
    """Token with which NullTokenizer ends documents. None: the one behind the vocabulary."""

    null_tokenizer_pad_id: TokenId = -1
    """Token with which NullTokenizer fills short samples. -1: none."""

    vocab_file: str | None = None
    """Vocabulary file of a BPE or WordPiece tokenizer. None: the type needs none."""

    merge_file: str | None = None
    """Merge rules of a BPE tokenizer. None: the type needs none."""

    vocab_extra_ids: Natural = 0
    """Extra tokens appended to the vocabulary."""

    vocab_size: Count | None = None
    """Tokens in the vocabulary before padding. None: ask the tokenizer."""

    make_vocab_size_divisible_by: Count = 128
    """The vocabulary is padded to a multiple of this times the tensor-parallel size."""

    pad_vocab_size: bool = True
    """Pad the vocabulary. False: the model has a row for each token and no more."""

    # --- documents and masks
    eos_token_id: Natural = 0
    """Token that ends a document. 0 is a token like any other."""

    pad_token_id: TokenId | None = None
    """Token that fills short sequences; its positions carry no loss. None: no padding token."""

    reset_position_ids: bool = False
    """Count positions from 0 after each end of document. False: from the start of the sample."""

    reset_attention_mask: bool = False
    """Forbid attention across documents of one sample. False: plain causal attention."""

    eod_mask_loss: bool = False
    """Take the loss at end-of-document tokens out. False: it counts."""

    create_attention_mask: bool = True
    """Let the loader build the attention mask tensor. False: the model's causal mask is enough."""

    allow_ambiguous_pad_tokens: bool = False
    """Treat a padding token that also ends documents as padding. False: as an end of document."""

    # --- other kinds of samples
    sft: bool = False
    """Train on conversations: the data paths are JSON-lines files with ``messages``. False: text.
    """

    is_instruction_dataset: bool = False
    """Train on the token files of MindSpeed-LLM's instruction handlers: the data paths are prefixes
    of ``_packed_input_ids_document`` and its siblings, and labels of -100 are not learned. False:
    text.
    """

    prompt_type: str | None = None
    """With is_instruction_dataset: template the files were made with; one that ends turns by a
    token of its own makes that the end of records. None: the tokenizer's.
    """

    prompt_type_path: str | None = None
    """JSON file of templates, in MindSpeed-LLM's form. None: those of this package."""

    neat_pack: bool = False
    """With reset_attention_mask and is_instruction_dataset: the records of a row are those that
    its attention mask numbers. False: a token ends them.
    """

    pad_to_multiple_of: Count = 8
    """With is_instruction_dataset and variable_seq_lengths: rows are filled up to a multiple."""

    padded_samples: bool = False
    """With is_instruction_dataset: fill each pass up to whole batches with its first records.

    False: a batch may hold records of two passes.
    """

    instruction_shuffle: bool = True
    """With is_instruction_dataset: every pass has an order of its own. False: that of the files."""

    full_shuffle_instruction_dataset: bool = False
    """With is_instruction_dataset: shuffle all passes together. False: each by itself."""

    cut_max_seqlen: bool = False
    """With is_instruction_dataset: cut the ends of long records off. False: of their questions
    and answers, in proportion.
    """

    fim_data: bool = False
    """Rearrange parts of documents, so that the model learns to fill gaps. False: leave them."""

    fim_rate: Share = 0.5
    """With fim_data: share of documents that are rearranged."""

    fim_spm_rate: Share = 0.5
    """With fim_data: share of those written suffix first."""

    fim_split_sample: str | None = None
    """With fim_data: token between parts that are rearranged apart. None: whole documents."""

    fim_fragment_rate: Share | None = None
    """With fim_split_sample: share of parts that are rearranged. None: none given."""

    fim_no_prefix: str | None = None
    """With fim_data: leave parts that begin with this text. None: no exception."""

    fim_prefix_token: str = "<fim_prefix>"
    """Token in front of the beginning."""

    fim_middle_token: str = "<fim_middle>"
    """Token in front of the gap's content."""

    fim_suffix_token: str = "<fim_suffix>"
    """Token in front of the end."""

    fim_pad_token: str = "<fim_pad>"
    """Token that fills a rearranged sample that became shorter."""

    fim_eod_token: str = "<|endoftext|>"
    """Token between documents."""

    def _resolve(self) -> None:
        is_one_source = self.data_path is not None or self.data_args_path is not None
        if is_one_source and not self.mock_data:
            self._fill("split", DEFAULT_SPLIT)

    def _check(self) -> None:
        if self.is_instruction_dataset and (self.sft or self.fim_data or self.mock_data):
            raise ValueError(
                "dataset_config gives is_instruction_dataset with sft, fim_data or mock_data; "
                "data is of one kind, keep one"
            )
        if self.sft and self.fim_data:
            raise ValueError(
                "dataset_config gives sft and fim_data; conversations are not rearranged, keep one"
            )
        per_split = (self.train_data_path, self.valid_data_path, self.test_data_path)
        if self.data_path is not None and any(path is not None for path in per_split):
            raise ValueError(
                "dataset_config gives data_path and a per-split path (train/valid/test_data_path); "
                "one source per split is the rule, keep either data_path or the per-split paths"
            )
        if self.mock_data and (self.data_path is not None or any(per_split)):
            raise ValueError(
                "dataset_config gives mock_data and a data path; "
                "generated and real data exclude each other, keep one"
            )
