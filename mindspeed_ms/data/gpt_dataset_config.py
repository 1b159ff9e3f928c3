# SPDX-License-Identifier: Apache-2.0
"""What a GPT dataset is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mindspeed_ms.data.utils import (
    Blend,
    Split,
    SplitRange,
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

MOCK_SPLIT = "1,1,1"


class TokenizerLike(Protocol):
    """What the datasets ask of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included, padding of the embedding excluded."""
        ...

    @property
    def eod(self) -> int:
        """Id of the token that ends a document.

        Raises:
            ValueError: there is none.
        """
        ...

    @property
    def eos(self) -> int | None:
        """Id of the token that ends a sentence or turn."""
        ...

    @property
    def pad(self) -> int | None:
        """Id of the token that fills short samples; None or -1 when there is none."""
        ...

    @property
    def unique_identifiers(self) -> Mapping[str, object]:
        """Ordered description, part of the names of the index cache files."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerInfo:
    """The facts about a tokenizer, when the tokenizer itself is not at hand."""

    vocab_size: int
    """Number of token ids, special tokens included."""

    eod: int
    """Id of the token that ends a document; 0 is as good as any."""

    eos: int | None = None
    """Id of the token that ends a sentence or turn."""

    pad: int | None = None
    """Id of the token that fills short samples; None: samples are filled with id 0, unlearned."""

    unique_identifiers: Mapping[str, object] = field(default_factory=dict)
    """Ordered description, part of the names of the index cache files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTDatasetConfig:
    """Options of the train, valid and test datasets; without a blend the data is mock data.

    Raises:
        ValueError: options that contradict each other; the message names both.
    """

    random_seed: int
    """Seed of the order of documents and samples (``--seed``)."""

    sequence_length: int
    """Tokens the model reads per sample (``--seq-length``)."""

    tokenizer: TokenizerLike
    """End-of-document id, vocabulary size and identifiers of the tokenizer."""

    blend: Blend | None = None
    """Prefixes and weights of one corpus that ``split`` divides (``--data-path``)."""

    blend_per_split: tuple[Blend | None, Blend | None, Blend | None] | None = None
    """Prefixes and weights for train, valid and test apart (``--train-data-path`` and the like)."""

    split: str | None = None
    """Shares of train, valid and test, for example ``"949,50,1"``; required with ``blend``."""

    path_to_cache: str | None = None
    """Directory of the index files; by default ``<prefix>/cache/GPTDataset_indices``."""

    object_storage_cache_path: str | None = None
    """Folder for copies of indices of datasets in object storage, which need one."""

    mmap_bin_files: bool = True
    """Map token files into memory instead of reading them with system calls."""

    reset_position_ids: bool = False
    """Count positions from 0 again after each end-of-document token."""

    reset_attention_mask: bool = False
    """Hide earlier documents of a sample: add ``document_ids`` [s] to it."""

    eod_mask_loss: bool = False
    """Leave positions whose input is the end-of-document token out of the loss."""

    create_attention_mask: bool = False
    """Add a dense ``attention_mask`` [1, s, s], True = masked, to each sample."""

    drop_last_partial_validation_sequence: bool = True
    """Drop the short sample at the end of the validation split instead of padding it."""

    add_extra_token_to_sequence: bool = True
    """Read one token more than ``sequence_length`` so that the last position has a label."""

    mid_level_dataset_surplus: float = 0.005
    """Share of samples each blended corpus prepares beyond its target, against rounding."""

    multiple_validation_sets: bool = False
    """Keep the corpora of the validation blend apart: one validation dataset each."""

    full_validation: bool = False
    """Validation reads its whole corpus once each time; its number of samples must be None."""

    num_dataset_builder_threads: int = 1
    """Threads that build the indices of a blend's corpora."""

    allow_ambiguous_pad_tokens: bool = False
    """Fill with the tokenizer's pad id even when it also ends documents; such labels do not count.

    False: a pad id with two meanings is not used, so end-of-document tokens stay in the loss.
    """

    context_parallel_size: int = 1
    """Ranks that share a sequence; packed conversations are filled to a multiple of twice this."""

    sequences_per_dataset: Mapping[str, int] | None = None
    """Number of sequences each prefix must have; None: not checked."""

    fast_cache_load: bool = False
    """Accepted without effect: index files are always mapped, and built by one rank per host."""

    defer_npy_index_mmap: bool = False
    """Accepted without effect: mapping an index reads none of it."""

    check_token_ids: bool = True
    """Look for ids beyond the vocabulary before training (at most 256 MiB of large files)."""

    def __post_init__(self) -> None:
        if self.sequence_length < 1:
            raise ValueError(
                f"sequence_length ({self.sequence_length}) must be at least 1; set --seq-length"
            )
        if self.num_dataset_builder_threads < 1:
            raise ValueError(
                f"num_dataset_builder_threads ({self.num_dataset_builder_threads}) must be at "
                "least 1"
            )
        if self.multiple_validation_sets and self.blend_per_split is None:
            raise ValueError(
                "multiple_validation_sets needs the validation corpora by themselves; give them "
                "with --valid-data-path or --per-split-data-args-path"
            )
        if self.blend is not None and self.blend_per_split is not None:
            raise ValueError(
                "blend and blend_per_split are both given; use --data-path with --split, or one "
                "data path per split"
            )
        if self.blend_per_split is not None:
            self._check_blend_per_split()
        elif self.blend is not None:
            _check_blend(self.blend)
            if self.split is None:
                raise ValueError(
                    f"data path {self.blend[0]} is given without a split; set --split, for "
                    "example 949,50,1"
                )
            parse_and_normalize_split(self.split)

    @property
    def mock(self) -> bool:
        """Whether the data is made up, because no path is given."""
        return self.blend is None and self.blend_per_split is None

    @property
    def effective_split(self) -> str | None:
        """The split in use: mock data is always cut in three equal parts."""
        return MOCK_SPLIT if self.mock else self.split

    @property
    def split_matrix(self) -> list[SplitRange | None] | None:
        """Range of each split as fractions; None when each split has its own paths."""
        split = self.effective_split
        if split is None:
            return None
        return convert_split_vector_to_split_matrix(parse_and_normalize_split(split))

    @property
    def pad_id(self) -> int:
        """Id that marks filled places; -1 if the tokenizer has none, or one that ends documents."""
        pad = self.tokenizer.pad
        if pad is None:
            return -1
        is_ambiguous = pad in (_eod_or_none(self.tokenizer), self.tokenizer.eos)
        return -1 if is_ambiguous and not self.allow_ambiguous_pad_tokens else pad

    @property
    def eod(self) -> int:
        """Id that ends documents; -1 if the tokenizer has none and no option needs it.

        Raises:
            ValueError: it has none, and masks or positions are to begin anew behind it.
        """
        if self.reset_position_ids or self.reset_attention_mask or self.eod_mask_loss:
            return self.tokenizer.eod
        eod = _eod_or_none(self.tokenizer)
        return -1 if eod is None else eod

    def _check_blend_per_split(self) -> None:
        blends = self.blend_per_split or ()
        if self.split is not None:
            raise ValueError(
                f"split {self.split!r} is given together with one data path per split; remove "
                "--split or use --data-path"
            )
        if len(blends) != len(Split) or not any(blends):
            raise ValueError(
                f"blend_per_split has {len(blends)} entries; it needs three, for train, valid and "
                "test, at least one of them not None"
            )
        for blend in blends:
            if blend is not None:
                _check_blend(blend)


def _eod_or_none(tokenizer: TokenizerLike) -> int | None:
    try:
        return tokenizer.eod
    except ValueError:  # a tokenizer without one says so when it is asked
        return None


def _check_blend(blend: Blend) -> None:
    prefixes, weights = blend
    if not prefixes or (weights is not None and len(weights) != len(prefixes)):
        raise ValueError(
            f"blend has {len(prefixes)} prefixes and {len(weights or [])} weights; give at least "
            "one prefix, and one weight each or none at all"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTFIMDatasetConfig(GPTDatasetConfig):
    """Options of fill-in-the-middle samples: parts of a document change places.

    Raises:
        ValueError: a rate outside 0 to 1, a missing token, or a fragment rule without its rate.
    """

    fim_rate: float = 0.5
    """Share of documents that are rearranged."""

    fim_spm_rate: float = 0.5
    """Share of those written suffix first; the others are written prefix first."""

    fim_extra_tokens: Mapping[str, str] = field(
        default_factory=lambda: {
            "prefix": "<fim_prefix>",
            "middle": "<fim_middle>",
            "suffix": "<fim_suffix>",
            "pad": "<fim_pad>",
            "eod": "<|endoftext|>",
        }
    )
    """Spelling of the five tokens in the tokenizer's vocabulary."""

    fim_split_sample: str | None = None
    """Token between the parts of a document, for example files, that are rearranged apart."""

    fim_fragment_rate: float | None = None
    """Share of those parts that are rearranged; required with ``fim_split_sample``."""

    fim_no_prefix: str | None = None
    """Parts that begin with this text stay as they are."""

    def __post_init__(self) -> None:
        # A dataclass with slots is a new class, which the argument-free super() does not know.
        super(GPTFIMDatasetConfig, self).__post_init__()
        for name in ("fim_rate", "fim_spm_rate", "fim_fragment_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate <= 1:
                raise ValueError(f"{name} ({rate}) must be from 0 to 1")
        missing = {"prefix", "middle", "suffix", "pad", "eod"} - set(self.fim_extra_tokens)
        if missing:
            raise ValueError(
                f"fim_extra_tokens lacks {', '.join(sorted(missing))}; name all five tokens"
            )
        if self.fim_split_sample is not None and self.fim_fragment_rate is None:
            raise ValueError(
                f"fim_split_sample {self.fim_split_sample!r} is given without a rate; set "
                "--fim-fragment-rate"
            )
