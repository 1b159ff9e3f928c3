# SPDX-License-Identifier: Apache-2.0
"""Flags of vocabularies, plans and checkpoints' layouts by what they do to a configuration."""

import pytest

from mindspeed_ms.data.tokenizers import build_tokenizer
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.checkpoint_args import layout_of_checkpoint
from mindspeed_ms.training.flags import BY_NAME
from mindspeed_ms.training.from_args import init_configs_from_args
from mindspeed_ms.training.initialize import initialize_megatron

SIZES = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 8 --micro-batch-size 1 "
    "--max-position-embeddings 8 --train-iters 1 --lr 1e-3 --mock-data --tokenizer-type "
    "NullTokenizer --vocab-size 100"
).split()


def built(*flags):
    return init_configs_from_args(validate_args(parse_args([*SIZES, *flags]), 1))


def test_a_vocabulary_is_padded_unless_that_is_not_wanted():
    assert built().model_config.vocab_size == 128
    for flag in ("--no-pad-vocab-size", "--disable-pad-vocab-size"):
        assert built(flag).model_config.vocab_size == 101


def test_a_null_tokenizer_ends_documents_and_fills_as_told():
    given = ("--null-tokenizer-eod-id", "7", "--null-tokenizer-pad-id", "3")
    config = built(*given)
    assert config.dataset_config.null_tokenizer_eod_id == 7
    plain, told = build_tokenizer(parse_args(SIZES)), build_tokenizer(parse_args([*SIZES, *given]))
    assert (plain.eod, plain.eos, plain.pad, plain.vocab_size) == (100, 100, None, 101)
    assert (told.eod, told.eos, told.pad, told.vocab_size) == (7, 7, 3, 101)
    assert plain.unique_identifiers != told.unique_identifiers
    with pytest.raises(ValueError, match="--null-tokenizer-eod-id 101 is no id of 101; give one"):
        build_tokenizer(parse_args([*SIZES, "--null-tokenizer-eod-id", "101"]))


def test_documents_are_kept_apart_by_one_flag():
    dataset = built("--dataloader-inter-document-masking").dataset_config
    assert dataset.reset_attention_mask and dataset.reset_position_ids
    assert not built().dataset_config.reset_attention_mask


def test_a_process_group_that_is_none_is_a_plan(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "8")
    flags = ("--fake-process-group", "--tensor-model-parallel-size", "2")
    with pytest.raises(SystemExit) as end:
        initialize_megatron(argv=[*SIZES, *flags])
    assert end.value.code in (0, None)
    assert "8 ranks" in capsys.readouterr().out


def test_a_layout_comes_from_a_checkpoint(monkeypatch):
    common = {"megatron_args": {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 1}}
    monkeypatch.setattr(
        "mindspeed_ms.training.checkpoint_args._common_of", lambda load, step: common
    )
    sections = layout_of_checkpoint("x", None)
    assert sections["parallel_config"]["tensor_model_parallel_size"] == 2
    args = parse_args([*SIZES, "--tensor-model-parallel-size", "1"], of_checkpoint=sections)
    assert args.tensor_model_parallel_size == 2
    assert "--use-mp-args-from-checkpoint-args" in BY_NAME
    common.clear()
    with pytest.raises(ValueError, match="was not written by a run, so it states no parallel"):
        layout_of_checkpoint("x", None)
