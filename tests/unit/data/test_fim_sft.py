# SPDX-License-Identifier: Apache-2.0
"""Fill-in-the-middle, conversations, and rows of tokens."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mindspeed_ms.data.builder import build_train_valid_test_datasets
from mindspeed_ms.data.fim_dataset import GPTFIMDataset
from mindspeed_ms.data.gpt_dataset_config import (
    GPTDatasetConfig,
    GPTFIMDatasetConfig,
    TokenizerInfo,
)
from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path
from mindspeed_ms.data.sft_dataset import SFTDataset, split_conversations
from mindspeed_ms.data.token_rows import TokenRowsDataset

EOD, PREFIX, MIDDLE, SUFFIX, FILL, SPLIT = 0, 120, 121, 122, 123, 124
NAMES = {
    "prefix": "<prefix>",
    "middle": "<middle>",
    "suffix": "<suffix>",
    "pad": "<fill>",
    "eod": "<eod>",
}
IDS = dict(
    zip([*NAMES.values(), "<split>"], [PREFIX, MIDDLE, SUFFIX, FILL, EOD, SPLIT], strict=True)
)


class Letters:
    """Token n is the character chr(n)."""

    vocab_size, eod, eos, pad = 125, EOD, EOD, None
    unique_identifiers = {"class": "Letters"}

    def tokenize(self, text):
        return [ord(character) for character in text]

    def detokenize(self, ids):
        return "".join(chr(number) for number in ids)

    def token_to_id(self, token):
        return IDS.get(token)


def write(prefix, documents):
    with IndexedDatasetBuilder(get_bin_path(str(prefix)), np.uint16) as builder:
        for text in documents:
            tokens = [*map(ord, text), EOD]
            builder.add_document(tokens, [len(tokens)])
        builder.finalize(get_idx_path(str(prefix)))
    return str(prefix)


def fim(tmp_path, documents, length=24, num_samples=4, **changes):
    prefix = write(tmp_path / "data", documents)
    options = {
        "random_seed": 7,
        "sequence_length": length,
        "tokenizer": Letters(),
        "blend": ([prefix], None),
        "split": "1",
        "path_to_cache": str(tmp_path / "cache"),
        "fim_extra_tokens": NAMES,
        "fim_rate": 1.0,
    } | changes
    config = GPTFIMDatasetConfig(**options)
    return build_train_valid_test_datasets(config, (num_samples, None, None), cls=GPTFIMDataset)[0]


def whole(item):
    return [*item["tokens"].tolist(), int(item["labels"][-1])]


def undo(ids):
    """The text a rearranged part was made from."""
    middle = ids.index(MIDDLE)
    if ids[1] == SUFFIX:
        suffix, rest = ids[2:middle], ids[middle + 1 :]
        return rest + suffix
    suffix = ids.index(SUFFIX)
    return ids[1:suffix] + ids[middle + 1 :] + ids[suffix + 1 : middle]


@pytest.mark.parametrize("spm_rate", [0.0, 1.0])
def test_rearranged_documents_hold_the_same_text(tmp_path, spm_rate):
    # One document and one token of the next fill a sample, and the three marks push them out.
    text = "abcdefghijklmnopqrstuvwx"
    dataset = fim(tmp_path, [text] * 8, length=25, num_samples=6, fim_spm_rate=spm_rate)
    for number in range(6):
        ids = whole(dataset[number])
        assert len(ids) == 26
        first = ids[: ids.index(EOD)] if EOD in ids else ids
        assert first[0] == PREFIX and first.count(MIDDLE) == 1
        assert (first[1] == SUFFIX) is bool(spm_rate) or spm_rate == 0.0
        if EOD in ids:
            assert "".join(map(chr, undo(first))) in text


def test_a_sample_depends_on_the_seed_and_its_number_only(tmp_path):
    first = fim(tmp_path, ["abcdefgh"] * 20, fim_rate=0.5)
    second = fim(tmp_path, ["abcdefgh"] * 20, fim_rate=0.5)
    _ = second[3], second[1]
    for number in range(4):
        assert whole(first[number]) == whole(second[number])
    other = fim(tmp_path, ["abcdefgh"] * 20, fim_rate=0.5, random_seed=8)
    assert [whole(other[i]) for i in range(4)] != [whole(first[i]) for i in range(4)]


def test_rate_zero_leaves_everything(tmp_path):
    plain = GPTDatasetConfig(
        random_seed=7,
        sequence_length=24,
        tokenizer=Letters(),
        blend=([write(tmp_path / "data", ["abcdefgh"] * 20)], None),
        split="1",
        path_to_cache=str(tmp_path / "plain"),
    )
    expected = build_train_valid_test_datasets(plain, (4, None, None))[0]
    dataset = fim(tmp_path, ["abcdefgh"] * 20, fim_rate=0.0)
    for number in range(4):
        assert whole(dataset[number]) == whole(expected[number])
    assert dataset.unique_identifiers["class"] == "GPTFIMDataset"


def test_parts_between_separators_are_rearranged_apart(tmp_path):
    document = f"abcdefg{chr(SPLIT)}hijklmn"
    dataset = fim(
        tmp_path,
        [document] * 8,
        length=40,
        fim_split_sample="<split>",
        fim_fragment_rate=1.0,
        fim_no_prefix="h",
    )
    texts = ["".join(map(chr, whole(dataset[number]))) for number in range(4)]
    assert all(f"{chr(SPLIT)}hijklmn"[: len(text.split(chr(SPLIT))[1]) + 1] for text in texts)
    assert any("hijklmn" in text for text in texts)  # the part that stays as it is
    assert any(chr(PREFIX) in text for text in texts)
    unchanged = fim(
        tmp_path,
        [document] * 8,
        length=40,
        fim_rate=0.0,
        fim_split_sample="<split>",
        fim_fragment_rate=1.0,
    )
    assert PREFIX not in whole(unchanged[0])


def test_a_shorter_result_is_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(Letters, "tokenize", lambda self, text: [ord("x")] if text else [])
    ids = whole(fim(tmp_path, ["a" * 60] * 4, length=40)[0])
    assert len(ids) == 41 and ids[-1] == FILL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fim_rate": 1.5}, "fim_rate .1.5. must be from 0 to 1"),
        ({"fim_extra_tokens": {"prefix": "a"}}, "lacks eod, middle, pad, suffix"),
        ({"fim_split_sample": "x"}, "set --fim-fragment-rate"),
        ({"fim_extra_tokens": NAMES | {"pad": "<?>"}}, "has no token '<.>'"),
        ({"tokenizer": TokenizerInfo(vocab_size=9, eod=0), "check_token_ids": False}, "reads and"),
    ],
)
def test_bad_fim_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        fim(tmp_path, ["abc"] * 20, **changes)


# ---- conversations ----

PAD, IGNORE = 99, -100


class Chat:
    """A conversation of contents '12' becomes tokens 1, 2; those of the assistant are learned."""

    vocab_size, eod, eos, pad = 100, 9, 9, PAD
    unique_identifiers = {"class": "Chat"}

    def tokenize_conversation(self, conversation):
        tokens, targets = [], []
        for message in conversation:
            ids = [int(digit) for digit in message["content"]]
            tokens += ids
            targets += ids if message["role"] == "assistant" else [IGNORE] * len(ids)
        return np.array(tokens), np.array(targets)


def talk(*parts):
    return [{"role": role, "content": content} for role, content in parts]


ONE = talk(("user", "12"), ("assistant", "34"))
TWO = talk(("system", "5"), ("user", "6"), ("assistant", "7"))


def sft(tmp_path, lines, length=8, num_samples=None, **changes):
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    options = {
        "random_seed": 1,
        "sequence_length": length,
        "tokenizer": Chat(),
        "blend": ([str(path)], None),
        "split": "1",
    } | changes
    config = GPTDatasetConfig(**options)
    return build_train_valid_test_datasets(config, (num_samples, None, None), cls=SFTDataset)[0]


def test_one_conversation_is_padded_and_only_answers_count(tmp_path):
    item = sft(tmp_path, [ONE])[0]
    assert item["tokens"].tolist() == [1, 2, 3, 4, 9, PAD, PAD, PAD]
    assert item["labels"].tolist() == [0, 3, 4, 9, PAD, PAD, PAD, PAD]
    assert item["loss_mask"].tolist() == [0, 1, 1, 1, 0, 0, 0, 0]
    assert item["position_ids"].tolist() == list(range(8))
    assert item["cu_seqlens"].tolist() == [0, *[8] * 8]
    assert item["document_ids"].tolist() == [0] * 8 and "attention_mask" not in item
    dense = sft(tmp_path, [ONE], create_attention_mask=True)[0]["attention_mask"]
    np.testing.assert_array_equal(dense[0], ~np.tri(8, dtype=bool))


def test_several_conversations_do_not_see_each_other(tmp_path):
    item = sft(tmp_path, [ONE + TWO], length=10, create_attention_mask=True)[0]
    assert item["tokens"].tolist() == [1, 2, 3, 4, 9, 5, 6, 7, 9, PAD]
    assert item["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert item["loss_mask"].tolist() == [0, 1, 1, 1, 0, 0, 1, 1, 0, 0]
    assert item["cu_seqlens"][:3].tolist() == [0, 5, 10]
    assert item["document_ids"].tolist() == [0] * 5 + [1] * 5
    seen = ~item["attention_mask"][0]
    assert seen[5:, :5].sum() == 0 and seen[7].tolist() == [0] * 5 + [1] * 3 + [0] * 2


def test_long_packs_are_cut_and_short_ones_aligned_for_context_parallelism(tmp_path):
    item = sft(tmp_path, [ONE + TWO], length=6)[0]
    assert item["tokens"].tolist() == [1, 2, 3, 4, 9, 5]
    assert item["labels"].tolist()[-1] == PAD and item["loss_mask"][-1] == 0
    assert item["cu_seqlens"][:3].tolist() == [0, 5, 6]
    aligned = sft(tmp_path, [ONE + TWO], length=16, context_parallel_size=2)[0]
    assert aligned["tokens"].tolist()[:12] == [1, 2, 3, 4, 9, PAD, PAD, PAD, 5, 6, 7, 9]
    assert aligned["cu_seqlens"][:3].tolist() == [0, 8, 16]


def test_lines_are_read_again_until_there_are_enough(tmp_path):
    dataset = sft(tmp_path, [ONE, TWO], num_samples=5)
    assert len(dataset) == 5
    assert dataset[4]["tokens"].tolist() == dataset[0]["tokens"].tolist()
    assert len(sft(tmp_path, [ONE, TWO])) == 2
    assert [len(one) for one in split_conversations(ONE + TWO + TWO)] == [2, 3, 3]


def test_bad_conversations_are_named(tmp_path):
    (tmp_path / "chat.jsonl").write_text("")
    config = {"random_seed": 1, "sequence_length": 8, "split": "1", "tokenizer": Chat()}
    blend = ([str(tmp_path / "chat.jsonl")], None)

    def build(**changes):
        options = GPTDatasetConfig(**(config | {"blend": blend} | changes))
        return build_train_valid_test_datasets(options, (None, None, None), cls=SFTDataset)[0]

    with pytest.raises(ValueError, match="is empty"):
        build()
    with pytest.raises(FileNotFoundError, match="--sft needs the path"):
        build(blend=(["no/such"], None))
    for line in ("{", '{"messages": 3}', '{"messages": [{"role": "user"}]}', '{"messages": []}'):
        (tmp_path / "chat.jsonl").write_text(f"{json.dumps({'messages': ONE})}\n{line}")
        with pytest.raises(ValueError, match="line 2 of .*chat.jsonl is no JSON object with mess"):
            _ = build()[1]
    with pytest.raises(ValueError, match="set --tokenizer-type SFTTokenizer"):
        build(tokenizer=TokenizerInfo(vocab_size=9, eod=0))
    with pytest.raises(ValueError, match="leave them out"):
        build(reset_position_ids=True)
    with pytest.raises(ValueError, match="train split of .* has no line"):
        SFTDataset(None, "x", np.arange(0), 1, *_split_and_config(config, blend))


def _split_and_config(config, blend):
    from mindspeed_ms.data.utils import Split

    return Split.train, GPTDatasetConfig(**config, blend=blend)


# ---- rows ----


def rows(tmp_path, array, length=4, num_samples=None, **changes):
    path = str(tmp_path / "rows.npy")
    np.save(path, array)
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=length,
        tokenizer=TokenizerInfo(vocab_size=100, eod=9, pad=50),
        blend=([path], None),
        split="1",
        **changes,
    )
    return build_train_valid_test_datasets(config, (num_samples, None, None), cls=TokenRowsDataset)[
        0
    ]


def test_rows_become_tokens_and_labels(tmp_path):
    dataset = rows(tmp_path, np.array([[1, 2, 9, 4, 50], [6, 7, 8, 9, 10]]), num_samples=3)
    item = dataset[0]
    assert item["tokens"].tolist() == [1, 2, 9, 4]
    assert item["labels"].tolist() == [2, 9, 4, 50]
    assert item["loss_mask"].tolist() == [1, 1, 1, 0]
    assert item["position_ids"].tolist() == [0, 1, 2, 3]
    assert dataset[2]["tokens"].tolist() == item["tokens"].tolist()
    assert len(dataset) == 3
    reset = rows(
        tmp_path,
        np.array([[1, 2, 9, 4, 5]]),
        reset_position_ids=True,
        reset_attention_mask=True,
        create_attention_mask=True,
        eod_mask_loss=True,
    )[0]
    assert reset["position_ids"].tolist() == [0, 1, 2, 0]
    assert reset["loss_mask"].tolist() == [1, 1, 0, 1]
    assert reset["attention_mask"].shape == (1, 4, 4)


UNCACHED = SimpleNamespace(path_to_cache=None)


def test_bad_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected is .5,.: sequence length plus one"):
        rows(tmp_path, np.zeros((3, 4), np.int32))
    with pytest.raises(FileNotFoundError, match="give the path of an .npy file"):
        TokenRowsDataset.build_low_level_dataset(str(tmp_path / "none.npy"), UNCACHED)
    (tmp_path / "bad.npy").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read as rows"):
        TokenRowsDataset.build_low_level_dataset(str(tmp_path / "bad.npy"), UNCACHED)
    with pytest.raises(ValueError, match="has no row"):
        TokenRowsDataset(
            np.zeros((2, 5)),
            "x",
            np.arange(0),
            1,
            *_split_and_config(
                {"random_seed": 1, "sequence_length": 4, "split": "1", "tokenizer": Chat()},
                (["x"], None),
            ),
        )


mindrecord = pytest.importorskip("mindspore.mindrecord")


def write_mindrecord(path, arrays, column="input_ids"):
    writer = mindrecord.FileWriter(str(path))
    writer.add_schema({column: {"type": "int32", "shape": [-1]}})
    writer.write_raw_data([{column: np.asarray(array, np.int32)} for array in arrays])
    writer.commit()


def test_mindrecord_rows_are_copied_once_and_mapped(tmp_path):
    path = tmp_path / "x.mindrecord"
    write_mindrecord(path, [np.arange(5) + i for i in range(6)])
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=4,
        tokenizer=TokenizerInfo(vocab_size=100, eod=99),
        blend=([str(path)], None),
        split="5,1,0",
        path_to_cache=str(tmp_path / "cache"),
    )
    for _ in range(2):
        train, valid, _ = build_train_valid_test_datasets(config, (7, 1, 0), cls=TokenRowsDataset)
        assert train[6]["tokens"].tolist() == [1, 2, 3, 4]
        assert valid[0]["tokens"].tolist() == [5, 6, 7, 8]
        assert isinstance(train.rows, np.memmap)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_bad_mindrecords_are_refused(tmp_path):
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=4,
        tokenizer=TokenizerInfo(vocab_size=100, eod=99),
        path_to_cache=str(tmp_path / "cache"),
    )

    def read(path):
        return TokenRowsDataset.build_low_level_dataset(str(path), config)

    with pytest.raises(FileNotFoundError, match="give the path of a MindRecord file"):
        read(tmp_path / "none.mindrecord")
    (tmp_path / "text.mindrecord").write_text("hello")
    with pytest.raises(ValueError, match="or not a MindRecord file with a column 'input_ids'"):
        read(tmp_path / "text.mindrecord")
    write_mindrecord(tmp_path / "uneven.mindrecord", [[1, 2], [3]])
    with pytest.raises(ValueError, match="row 1 of .* has 1 tokens, row 0 has 2"):
        read(tmp_path / "uneven.mindrecord")
    assert list((tmp_path / "cache").iterdir()) == []
