# SPDX-License-Identifier: Apache-2.0
"""GPT-2, Hugging Face and tiktoken tokenizers on tiny vocabularies made here."""

import base64
import json

import pytest

from mindspeed_ms.data.tokenizers import (
    GPT2BPETokenizer,
    HuggingFaceTokenizer,
    SFTTokenizer,
    TikTokenizer,
    bpe_tokenizers,
    build_tokenizer,
    optional_libraries,
    sft_tokenizer,
)

tokenizers = pytest.importorskip("tokenizers")
TEXTS = [
    "the cat sat on the mat; it's the cat's mat.",
    "  two  spaces\n\nand lines\t1234 5",
    "Ünïcödé – 漢字 🙂 and we'll they've",
    "",
]


def byte_symbols():
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols, extra = {}, 0
    for byte in range(256):
        symbols[byte] = chr(byte) if byte in printable else chr(256 + extra)
        extra += byte not in printable
    return symbols


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    space = byte_symbols()[32]
    merges = [
        ("t", "h"),
        ("th", "e"),
        (space, "the"),
        ("a", "t"),
        (space, "m"),
        (f"{space}m", "at"),
    ]
    vocab = {symbol: number for number, symbol in enumerate(byte_symbols().values())}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    vocab["<|endoftext|>"] = len(vocab)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(lines))
    return str(folder / "vocab.json"), str(folder / "merges.txt")


def literal_gpt2(vocab_file, merge_file, text):
    """GPT-2's rule, word by word and merge by merge."""
    regex = pytest.importorskip("regex")
    vocab = json.load(open(vocab_file))
    merges = [tuple(line.split()) for line in open(merge_file).read().split("\n")[1:-1]]
    rank = {pair: number for number, pair in enumerate(merges)}
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    symbols, ids = byte_symbols(), []
    for word in regex.findall(pattern, text):
        parts = [symbols[byte] for byte in word.encode()]
        while True:
            pairs = [
                (rank.get(pair, 10**9), i)
                for i, pair in enumerate(zip(parts, parts[1:], strict=False))
            ]
            if not pairs or min(pairs)[0] == 10**9:
                break
            i = min(pairs)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [vocab.get(part, 0) for part in parts]
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_gpt2_equals_its_literal_rule_and_reads_back(gpt2_files, text):
    tokenizer = GPT2BPETokenizer(*gpt2_files)
    ids = tokenizer.tokenize(text)
    assert ids == literal_gpt2(*gpt2_files, text)
    assert tokenizer.detokenize(ids) == text
    assert tokenizer.tokenize(text) == ids  # from memory


def test_gpt2_special_token_is_text_when_written_out(gpt2_files):
    tokenizer = build_tokenizer(
        "GPT2BPETokenizer", vocab_file=gpt2_files[0], merge_file=gpt2_files[1]
    )
    assert tokenizer.eod == tokenizer.eos == tokenizer.vocab_size - 1 == 262
    assert tokenizer.eod not in tokenizer.tokenize("<|endoftext|>")
    assert tokenizer.token_to_id("the") == 257
    assert tokenizer.token_to_id("dog") is None
    assert tokenizer.unique_identifiers == {
        "class": "_GPT2BPETokenizer",
        "tokenizer_path": list(gpt2_files),
    }


def test_remembered_words_are_bounded(gpt2_files, monkeypatch):
    monkeypatch.setattr(bpe_tokenizers, "_MAX_KNOWN_WORDS", 2)
    tokenizer = GPT2BPETokenizer(*gpt2_files)
    assert tokenizer.tokenize(TEXTS[0]) == literal_gpt2(*gpt2_files, TEXTS[0])
    assert len(tokenizer._known) <= 2


def test_bytes_that_are_no_text_are_replaced(gpt2_files):
    tokenizer = GPT2BPETokenizer(*gpt2_files)
    assert tokenizer.detokenize(tokenizer.tokenize("ü")[:1]) == "\ufffd"


def test_bad_gpt2_files_are_named(tmp_path, gpt2_files):
    vocab, merges = gpt2_files
    bad = tmp_path / "bad"
    for content, message in (
        ("{", "bad is not JSON"),
        ("[1]", "holds a JSON list"),
        ('{"a": "b"}', "must map its 1 tokens to the numbers 0 to 0"),
        ('{"a": 0}', "has no <|endoftext|>".replace("|", r"\|")),
        ('{"a": 0, "<|endoftext|>": 1}', "do not belong together"),
    ):
        bad.write_text(content)
        with pytest.raises(ValueError, match=message):
            GPT2BPETokenizer(str(bad), merges)
    bad.write_text("#version\nab\n")
    with pytest.raises(ValueError, match="line 2 of .*bad is 'ab'"):
        GPT2BPETokenizer(vocab, str(bad))
    with pytest.raises(ValueError, match="merges no/such is not a file"):
        GPT2BPETokenizer(vocab, "no/such")


def test_a_missing_library_is_one_line(monkeypatch, gpt2_files):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(optional_libraries.importlib, "import_module", absent)
    with pytest.raises(
        RuntimeError, match=r"needs the library tokenizers.*mindspeed_ms\[tokenizers"
    ):
        GPT2BPETokenizer(*gpt2_files)


def test_a_library_is_found_only_when_installed():
    assert FIND("tokenizers") is tokenizers
    assert FIND("no_such_library_at_all") is None


# ---- Hugging Face ----


FIND = optional_libraries.load_if_installed


@pytest.fixture(autouse=True)
def without_transformers(monkeypatch):
    """The folder made here is read by ``tokenizers`` whether or not transformers is installed."""
    monkeypatch.setattr(optional_libraries, "load_if_installed", lambda _: None)


SPECIAL = [
    "<unk>",
    "</s>",
    "<pad>",
    "<SPECIAL_10>",
    "<SPECIAL_11>",
    "<SPECIAL_12>",
    "<SPECIAL_233>",
]
CHAT = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*SPECIAL, *CHAT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"eos_token": {"content": "</s>"}, "pad_token": "<pad>", "bos_token": None}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_hugging_face_folder_is_read(folder):
    tokenizer = HuggingFaceTokenizer(str(folder))
    assert (tokenizer.eod, tokenizer.pad, tokenizer.bos) == (1, 2, None)
    assert tokenizer.vocab_size == 300 or tokenizer.vocab_size > 260
    for text in TEXTS:
        assert tokenizer.detokenize(tokenizer.tokenize(text)) == text
        assert tokenizer.tokenize_quickly(text) == tokenizer.tokenize(text)
    assert tokenizer.token_to_id("</s>") == 1
    assert HuggingFaceTokenizer(str(folder / "tokenizer.json")).eod == 1
    assert tokenizer.unique_identifiers["class"] == "_HuggingFaceTokenizer"


def test_bad_hugging_face_folders_are_named(tmp_path, folder):
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        HuggingFaceTokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer file"):
        HuggingFaceTokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    without = HuggingFaceTokenizer(str(tmp_path))
    assert without.eos is None and without.tokenize("hat")
    with pytest.raises(ValueError, match="names no eos_token"):
        _ = without.eod
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": ["</s>"]}')
    with pytest.raises(ValueError, match="eos_token is .*a special token is a string"):
        HuggingFaceTokenizer(str(tmp_path))


class FakeTransformers:
    class AutoTokenizer:
        eos_token_id, bos_token_id, pad_token_id = 5, None, 6

        @classmethod
        def from_pretrained(cls, path, local_files_only, trust_remote_code, use_fast):
            assert local_files_only
            if trust_remote_code:
                raise OSError("no config.json")
            return cls()

        def __len__(self):
            return 7

        def __call__(self, text, add_special_tokens):
            return type("Encoded", (), {"input_ids": [len(text), int(add_special_tokens)]})

        def decode(self, ids):
            return str(ids)

        def get_vocab(self):
            return {"a": 1}


def test_transformers_is_used_when_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(optional_libraries, "load_if_installed", lambda _: FakeTransformers)
    tokenizer = HuggingFaceTokenizer(str(tmp_path))
    assert (tokenizer.eod, tokenizer.pad, tokenizer.vocab_size) == (5, 6, 7)
    assert tokenizer.tokenize("abc") == [3, 1]
    assert tokenizer.detokenize([1]) == "[1]"
    assert (tokenizer.token_to_id("a"), tokenizer.token_to_id("b")) == (1, None)
    with pytest.raises(ValueError, match="is not a Hugging Face tokenizer .no config.json"):
        HuggingFaceTokenizer(str(tmp_path), trust_remote_code=True)


# ---- conversations ----

CONVERSATION = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi /no_think"},
    {"role": "assistant", "content": " the mat "},
]
WRITTEN = {
    "nemotron-h-aligned": (
        "<SPECIAL_10>System\nBe brief.\n<SPECIAL_11>User\nHi /no_think\n<SPECIAL_11>Assistant\n"
        "the mat\n",
        "the mat\n",
    ),
    "nemotron-nano-v2": (
        "<SPECIAL_10>System\nBe brief.\n<SPECIAL_11>User\nHi\n<SPECIAL_11>Assistant\nthe mat\n"
        "<SPECIAL_12>\n",
        "the mat\n<SPECIAL_12>\n",
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi /no_think<|im_end|>\n"
        "<|im_start|>assistant\nthe mat<|im_end|>\n",
        "the mat<|im_end|>\n",
    ),
}


@pytest.mark.parametrize("form", sft_tokenizer.PROMPT_FORMATS)
def test_conversations_are_written_and_only_answers_learned(folder, form):
    tokenizer = SFTTokenizer(str(folder), form)
    tokens, targets = tokenizer.tokenize_conversation(CONVERSATION)
    whole, learned = WRITTEN[form]
    assert tokenizer.detokenize(tokens) == whole
    is_learned = targets != sft_tokenizer.IGNORE_INDEX
    assert tokenizer.detokenize(tokens[is_learned]) == learned
    assert (targets[is_learned] == tokens[is_learned]).all()
    assert tokenizer.unique_identifiers["prompt_format"] == form
    assert tokenizer.detokenize(tokenizer.tokenize("the cat")) == "the cat"
    assert tokenizer.token_to_id("</s>") == tokenizer.eod


def test_bad_conversations_are_refused(folder):
    tokenizer = SFTTokenizer(str(folder))
    with pytest.raises(ValueError, match="role 'robot' is unknown"):
        tokenizer.tokenize_conversation([{"role": "robot", "content": "x"}])
    for messages in (CONVERSATION[2:], [CONVERSATION[1], {"role": "assistant", "content": ""}]):
        with pytest.raises(ValueError, match="empty or does not follow"):
            tokenizer.tokenize_conversation(messages)


def test_bad_prompt_formats_are_refused(folder, monkeypatch):
    with pytest.raises(ValueError, match="'poem' is unknown; set --sft-tokenizer-prompt-format"):
        build_tokenizer(
            "SFTTokenizer", tokenizer_model=str(folder), sft_tokenizer_prompt_format="poem"
        )
    monkeypatch.setitem(
        sft_tokenizer.PROMPT_FORMATS,
        "other",
        sft_tokenizer.PROMPT_FORMATS["chatml"]._replace(pad_token="<none>"),
    )
    with pytest.raises(ValueError, match="has no pad token <none>"):
        SFTTokenizer(str(folder), "other")


# ---- tiktoken ----


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    pytest.importorskip("tiktoken")
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"at"]
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": ""}
        for rank, token in enumerate(tokens)
    ]
    path = tmp_path_factory.mktemp("tiktoken") / "vocab.json"
    path.write_text(json.dumps(entries))
    return str(path)


@pytest.mark.parametrize("pattern", ["v1", "v2"])
def test_tiktoken_ids_start_behind_the_special_tokens(ranks, pattern):
    tokenizer = build_tokenizer(
        "TikTokenizer",
        tokenizer_model=ranks,
        tiktoken_pattern=pattern,
        vocab_size=270,
        tiktoken_num_special_tokens=10,
    )
    assert tokenizer.tokenize("the the") == [10 + 257, 10 + 258]
    assert tokenizer.tokenize("a", bos=True, eos=True) == [1, 10 + 97, 2]
    assert (tokenizer.eod, tokenizer.vocab_size) == (2, 270)
    for text in TEXTS:
        assert tokenizer.detokenize(tokenizer.tokenize(text)) == text
    assert tokenizer.token_to_id("<SPECIAL_9>") == 9
    assert tokenizer.token_to_id("the") == 267
    assert tokenizer.token_to_id("dog") is None
    assert list(tokenizer.unique_identifiers) == [
        "class",
        "tokenizer_path",
        "pattern",
        "vocab_size",
        "num_special_tokens",
        "special_tokens",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"special_tokens": ["<s>"]}, "must be unique and include"),
        ({"num_special_tokens": 2}, "at least 3"),
        (
            {"special_tokens": ["<unk>", "<s>", "</s>", "<SPECIAL_7>"], "num_special_tokens": 9},
            "rename it",
        ),
        ({"num_special_tokens": 5}, "260 tokens with different bytes, 265"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(ranks, options, message):
    with pytest.raises(ValueError, match=message):
        TikTokenizer(ranks, "v1", vocab_size=270, **options)


def test_a_file_that_is_no_tiktoken_vocabulary_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('[{"rank": 0}]')
    with pytest.raises(ValueError, match="is not a tiktoken vocabulary"):
        TikTokenizer(str(tmp_path / "x.json"), "v1", vocab_size=270, num_special_tokens=10)
