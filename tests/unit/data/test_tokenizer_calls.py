# SPDX-License-Identifier: Apache-2.0
"""Settings and calls of tokenizers, files that cannot be used, processors."""

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizer_cases as cases
from tokenizer_made import made

import mindspeed_ms
from mindspeed_ms import (
    AutoTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
)
from mindspeed_ms.data.tokenizers.byte_level import symbols_of_bytes
from mindspeed_ms.toolkit import messages

tokenizers = pytest.importorskip("tokenizers")


# ---- settings ----


def test_arguments_go_before_the_folders_settings(tmp_path):
    tokenizer = made(
        "llama",
        tmp_path,
        padding_side="right",
        pad_token="<pad>",
        model_max_length=7,
        add_bos_token=False,
        add_eos_token=True,
        chat_template="x",
    )
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.model_max_length) == (
        "right",
        "<pad>",
        7,
    )
    assert tokenizer("a", max_length=None)["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.chat_template == "x"
    tokenizer.add_bos_token = True
    tokenizer.add_eos_token = False
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id


def test_unknown_arguments_are_named_and_those_of_a_hub_said_once(tmp_path, caplog):
    with pytest.raises(TypeError, match="no argument 'padding_sid'; did you mean 'padding_side'"):
        made("gpt2", tmp_path, padding_sid="left")
    with pytest.raises(TypeError, match="GPT2Tokenizer takes no argument 'legacy_format'"):
        GPT2Tokenizer(legacy_format=True)
    messages._SAID.clear()
    for _ in range(2):
        made("gpt2", tmp_path, use_fast=True, local_files_only=True, revision="main", token=None)
    assert caplog.text.count("revision has no effect") == 1
    assert "use_fast" not in caplog.text
    with pytest.raises(ValueError, match="padding_side is 'middle'; use 'left' or 'right'"):
        made("gpt2", tmp_path, padding_side="middle")


def test_a_models_own_special_tokens_are_attributes(tmp_path):
    tokenizer = made("generic_json", tmp_path, image_token="<image>")
    assert tokenizer("<image>")["input_ids"] == [tokenizer.image_token_id]
    assert tokenizer.special_tokens_map["image_token"] == "<image>"
    tokenizer.image_token = None
    assert tokenizer.image_token is None and "image_token" not in tokenizer.special_tokens_map
    tokenizer.image_token = "<tool>"
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").image_token == "<tool>"


def test_special_tokens_are_set_by_text_and_by_id(tmp_path):
    tokenizer = made("llama", tmp_path)
    assert tokenizer.sep_token is None and tokenizer.sep_token_id is None
    tokenizer.sep_token = "a"
    tokenizer.pad_token_id = tokenizer.convert_tokens_to_ids("b")
    assert tokenizer.pad_token == "b"
    assert tokenizer.sep_token_id == tokenizer.convert_tokens_to_ids("a")
    tokenizer.additional_special_tokens = ["c"]
    assert tokenizer.extra_special_tokens == ["c"]
    assert tokenizer.additional_special_tokens_ids == tokenizer.convert_tokens_to_ids(["c"])
    with pytest.raises(ValueError, match="eos_token cannot be 3"):
        tokenizer.eos_token = 3
    with pytest.raises(ValueError, match="'eos_tokn' is no special token; did you mean 'eos_to"):
        tokenizer.add_special_tokens({"eos_tokn": "x"})
    with pytest.raises(ValueError, match="give a list of tokens"):
        tokenizer.add_special_tokens({"extra_special_tokens": "x"})
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tokenizer.nothing
    assert tokenizer.add_tokens([]) == 0
    before = len(tokenizer)
    assert (
        tokenizer.add_special_tokens(
            {"extra_special_tokens": ["c", "<new>"]}, replace_extra_special_tokens=False
        )
        == len(tokenizer) - before
    )
    assert tokenizer.extra_special_tokens == ["c", "<new>"]


def test_a_pad_token_of_last_resort_is_in_the_generation_settings(tmp_path):
    tokenizer = made("tiktoken", tmp_path, pad_token=None)
    with pytest.raises(ValueError, match="no pad token to pad with; set one"):
        tokenizer(["a b c", "d"], padding=True)
    (tmp_path / "generation_config.json").write_text('{"pad_token_id": 7}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, pad_token=None)
    assert tokenizer(["a b c", "d"], padding=True, padding_side="left")["input_ids"][1][:2] == [
        7,
        7,
    ]
    assert tokenizer.pad_token is None


def test_a_tokenizer_is_copied_and_pickled(tmp_path):
    tokenizer = made("llama", tmp_path)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        other.add_tokens(["<only here>"])
        assert other("a lamp").data == tokenizer("a lamp").data
        assert len(other) == len(tokenizer) + 1
        assert other.special_tokens_map == tokenizer.special_tokens_map


# ---- calls ----


def test_tensors_are_int32_for_mindspore_and_int64_for_numpy(tmp_path):
    tokenizer = made("gpt2", tmp_path)
    one = tokenizer("the lamp", return_tensors="ms")["input_ids"]
    assert type(one).__module__.startswith("mindspore") and str(one.dtype) == "Int32"
    assert one.shape == (1, len(tokenizer("the lamp")["input_ids"]))
    array = tokenizer(["the lamp", "a"], return_tensors="np", padding=True)["attention_mask"]
    assert array.dtype == np.int64 and array.tolist()[1][-1] == 0
    assert tokenizer.decode(one) == ["the lamp"] and tokenizer.decode(one[0]) == "the lamp"
    assert tokenizer.batch_decode(one.asnumpy()) == ["the lamp"]
    with pytest.raises(ValueError, match="return_tensors is 'pt'; use 'ms'"):
        tokenizer("a", return_tensors="pt")
    with pytest.raises(ValueError, match="input_ids has sequences of different lengths"):
        tokenizer(["a b c d", "a"], return_tensors="np")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": None}, "nothing to encode"),
        ({"text": 3}, "text holds int 3"),
        ({"text": ["a", 3.5][1:]}, "text holds float"),
        ({"text": ["a"], "text_pair": "b"}, "text_pair is a single text"),
        ({"text": ["a"], "text_pair": ["b", "c"]}, "text_pair is 2 texts; a batch of 1"),
        ({"text": "a", "padding": "longst"}, "padding is 'longst'; use True, False, 'longest'"),
        ({"text": "a", "truncation": "first"}, "truncation is 'first'"),
        ({"text": "a", "max_length": -1}, r"max_length \(-1\) must be"),
        ({"text": "a", "padding": True, "padding_side": "up"}, "padding_side is 'up'"),
        (
            {
                "text": "a",
                "padding": True,
                "truncation": True,
                "max_length": 5,
                "pad_to_multiple_of": 4,
            },
            r"max_length \(5\) must be a multiple of pad_to_multiple_of \(4\)",
        ),
        ({"text": ["a", "b\ud800"]}, r"'\\ud800' at 1 is half a character; replace it"),
        (
            {"text": "a b", "text_pair": "c", "truncation": "only_second", "max_length": 1},
            "cannot be encoded as asked .*change truncation",
        ),
    ],
)
def test_wrong_calls_are_one_line(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        made("gpt2", tmp_path)(**arguments)
    assert "\n" not in str(caught.value)


def test_tokens_know_their_place_in_the_text(tmp_path):
    result = made("gpt2", tmp_path)(["the lamp", "red"], ["é sea", "b"])
    assert result.tokens(0) == result[0].tokens and result.is_fast
    assert result.char_to_token(0, 4) == result.word_ids(0).index(1)
    start, end = result.token_to_chars(0, 0)
    assert (start, "the lamp"[start:end]) == (0, "the"[:end])
    assert set(result.sequence_ids(1)) == {0, 1}
    assert result[:1]["input_ids"] == result["input_ids"][:1]
    assert result.input_ids is result["input_ids"]
    with pytest.raises(AttributeError, match="has no 'labels'"):
        _ = result.labels
    bare = made("gpt2", tmp_path).pad({"input_ids": [[1], [2, 3]]})
    with pytest.raises(ValueError, match="not made from a text"):
        bare.tokens()


def test_older_names_of_calls_work(tmp_path):
    tokenizer = made("gpt2", tmp_path)
    assert tokenizer.encode_plus("a", "b").data == tokenizer("a", "b").data
    assert tokenizer.batch_encode_plus(["a", "b c"]).data == tokenizer(["a", "b c"]).data
    assert tokenizer.batch_encode_plus([("a", "b")]).data == tokenizer(["a"], ["b"]).data
    assert bool(tokenizer) and tokenizer.vocab == tokenizer.get_vocab()
    assert "GPT2Tokenizer(name_or_path=" in repr(tokenizer)


def test_padding_of_encoded_rows(tmp_path):
    tokenizer = made("gpt2", tmp_path)
    rows = [tokenizer("the lamp"), tokenizer("a")]
    padded = tokenizer.pad(rows, return_tensors="np", padding_side="left")
    assert (
        padded["input_ids"].tolist()
        == tokenizer(["the lamp", "a"], padding=True, padding_side="left")["input_ids"]
    )
    assert tokenizer.pad({"input_ids": [1]}, padding="max_length", max_length=3)["input_ids"] == [
        1,
        *[tokenizer.pad_token_id] * 2,
    ]
    assert len(tokenizer.pad(rows, pad_to_multiple_of=8)["input_ids"][0]) % 8 == 0
    with pytest.raises(ValueError, match="no input_ids"):
        tokenizer.pad({"labels": [1]})


# ---- unusable files ----


def test_unusable_files_are_named_in_one_line(tmp_path):
    def refused(message, kind="gpt2", **files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        cases.KINDS[kind](folder)
        for name, content in files.items():
            path = (
                folder / name.replace("_", ".")
                if name != "tokenizer_config_json"
                else folder / "tokenizer_config.json"
            )
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_text(content)
        with pytest.raises((ValueError, OSError), match=message) as caught:
            AutoTokenizer.from_pretrained(folder)
        assert "\n" not in str(caught.value)

    refused("tokenizer_config.json is not JSON", tokenizer_config_json="{")
    refused("holds a JSON list; an object", tokenizer_config_json="[]")
    refused("is not a tokenizer file", "generic_json", tokenizer_json="{}")
    refused("vocabulary does not make a GPT2Tokenizer .*give all files", vocab_json='{"a": 0}')
    refused("are not a vocabulary and its merges", merges_txt="#version: 0.2\na\n")
    refused(
        "neither a SentencePiece model nor tiktoken ranks: line 1", "llama", tokenizer_model="x y"
    )
    refused("is empty", "llama", tokenizer_model="")
    refused(
        "scores .Unigram., which does not make a LlamaTokenizer|no scores",
        "t5",
        tokenizer_json=cases.byte_level_json(),
    )
    for config, message in (
        ('{"pad_token": 3}', "pad_token is 3; a special token is"),
        ('{"extra_special_tokens": "<a>"}', "extra_special_tokens is '<a>'; give a list"),
        ('{"added_tokens_decoder": []}', r"added_tokens_decoder is \[\]; it maps ids"),
        ('{"added_tokens_decoder": {"x": "<a>"}}', "added_tokens_decoder is {'x': '<a>'}"),
        ('{"eos_token": {"content": 3}}', "a token is described as {'content': 3}"),
    ):
        refused(message, tokenizer_config_json=config)
    folder = tmp_path / "no merges"
    folder.mkdir()
    cases.gpt2(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(ValueError, match="vocab.json needs .*merges.txt beside it"):
        AutoTokenizer.from_pretrained(folder)
    with pytest.raises(ValueError, match="LlamaTokenizer needs a vocabulary: give vocab_file"):
        LlamaTokenizer()
    with pytest.raises(ValueError, match="no/such.model of LlamaTokenizer is not a file"):
        LlamaTokenizer("no/such.model")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        made("gpt2", tmp_path).save_pretrained(tmp_path / "file")


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    cases.gpt2(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RuntimeError, match=r"needs the library tokenizers.*mindspeed_ms\[tokeni"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_each_byte_has_its_own_character():
    symbols = symbols_of_bytes()
    assert len(set(symbols.values())) == 256 and symbols[32] == "\u0120" and symbols[65] == "A"


# ---- processors ----


def test_processors_cut_and_fill_to_one_length(tmp_path):
    tokenizer = made("llama", tmp_path, pad_token=None)
    processor = mindspeed_ms.LlamaProcessor(tokenizer, max_length=6, return_tensors="np")
    rows = processor(["the harbour lamp is far away", "a"])["text"]
    assert rows.shape == (2, 6) and rows[1, 0] == tokenizer.eos_token_id  # filled on the left
    assert processor("a")["text"].tolist() == rows[1:].tolist()
    ragged = mindspeed_ms.TextProcessor(tokenizer, padding=False, return_tensors=None)
    assert ragged(["a", "a b"])["text"] == tokenizer(["a", "a b"])["input_ids"]
    longest = mindspeed_ms.TextProcessor(tokenizer, padding=True, return_tensors="ms")
    assert longest(["a", "a b"])["text"].shape == (2, len(tokenizer("a b")["input_ids"]))


def test_processors_are_saved_and_found(tmp_path):
    tokenizer = made("gpt2", tmp_path)
    processor = mindspeed_ms.PanguAlphaProcessor(tokenizer, max_length=9, return_tensors="np")
    files = processor.save_pretrained(tmp_path / "saved")
    assert Path(files[-1]).name == "processor_config.json"
    again = mindspeed_ms.AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(again) is mindspeed_ms.PanguAlphaProcessor and again.max_length == 9
    assert again("a")["text"].tolist() == processor("a")["text"].tolist()
    other = mindspeed_ms.AutoProcessor.from_pretrained(tmp_path / "saved", max_length=4)
    assert other("a")["text"].shape == (1, 4)
    by_type = mindspeed_ms.AutoProcessor.from_pretrained(tmp_path)
    assert type(by_type) is mindspeed_ms.GPT2Processor and by_type.max_length == 128
    (tmp_path / "config.json").unlink()
    assert type(mindspeed_ms.AutoProcessor.from_pretrained(tmp_path)) is mindspeed_ms.TextProcessor
    assert mindspeed_ms.AutoProcessor.show_support_list() == ["gpt2", "llama", "pangualpha"]


def test_wrong_processors_are_refused(tmp_path):
    tokenizer = made("gpt2", tmp_path)
    with pytest.raises(TypeError, match="tokenizer is None; give a tokenizer"):
        mindspeed_ms.GPT2Processor()
    with pytest.raises(ValueError, match=r"max_length is 0"):
        mindspeed_ms.GPT2Processor(tokenizer, max_length=0)
    with pytest.raises(ValueError, match="return_tensors is 'pt'"):
        mindspeed_ms.GPT2Processor(tokenizer, return_tensors="pt")
    with pytest.raises(ValueError, match="padding is 'x'"):
        mindspeed_ms.GPT2Processor(tokenizer, padding="x")
    with pytest.raises(TypeError, match="no argument 'max_lenght'; did you mean 'max_length'"):
        mindspeed_ms.GPT2Processor.from_pretrained(tmp_path, max_lenght=3)
    with pytest.raises(OSError, match="AutoProcessor.from_pretrained"):
        mindspeed_ms.AutoProcessor()
    for name in ("pad_token", "eos_token"):
        setattr(tokenizer, name, None)
    with pytest.raises(ValueError, match="neither a pad token nor an end token"):
        mindspeed_ms.GPT2Processor(tokenizer)("a")


def test_the_length_of_one_text_is_a_list_as_transformers_gives_it(tmp_path):
    tokenizer = made("gpt2", tmp_path)
    one = tokenizer("Ada finds a path", return_length=True)
    assert one["length"] == [len(one["input_ids"])]


def test_a_stride_as_long_as_the_texts_is_refused(tmp_path):
    for kind, kept in (("gpt2", 1), ("llama", 2)):
        tokenizer = made(kind, tmp_path)
        with pytest.raises(ValueError, match="cannot be encoded as asked.*stride"):
            tokenizer("Ada finds", max_length=kept, stride=1, return_overflowing_tokens=True)
    with pytest.raises(ValueError, match="cannot be encoded as asked.*stride"):
        tokenizer(["Ada finds a path"], ["and more"], max_length=4, stride=2)
