# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers of every kind, texts and calls, as the recorded results know them.

The vocabularies in ``tests/data/tokenizers`` were trained by ``record_tokenizers.py`` on
sentences written for it. Here they become folders as models ship them. Nothing here needs the
package or ``transformers``, so both sides of a comparison use it.
"""

import base64
import json
import random
import shutil
from pathlib import Path

VOCABULARIES = Path(__file__).parent / "data" / "tokenizers"
EXPECTED = VOCABULARIES / "expected.json.gz"
NUM_TEXTS = 1000

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _config(folder, **values):
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def _model(folder, **values):
    (folder / "config.json").write_text(json.dumps(values))


def _token(content, **properties):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"content": content, **plain, "special": True, **properties}


def _bpe(folder):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(VOCABULARIES / name, folder / name)


def byte_level_json(**parts):
    """A ``tokenizer.json`` of byte-level BPE."""
    vocab = json.loads((VOCABULARIES / "vocab.json").read_text())
    merges = (VOCABULARIES / "merges.txt").read_text().split("\n")[1:-1]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab["<|endoftext|>"], **_token("<|endoftext|>")},
            {"id": len(vocab), **_token("<|im_start|>")},
            {"id": len(vocab) + 1, **_token("<|im_end|>")},
            {"id": len(vocab) + 2, **_token("<tool>", special=False, normalized=True)},
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return json.dumps(content | parts)


def _around(bos, number):
    """A post-processor that puts a token in front."""
    special = {"id": bos, "ids": [number], "tokens": [bos]}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    token = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, token, second],
        "special_tokens": {bos: special},
    }


def gpt2(folder):
    _bpe(folder)
    _config(folder, tokenizer_class="GPT2Tokenizer", model_max_length=64, pad_token="<|endoftext|>")
    _model(folder, model_type="gpt2")


def gpt2_prefix_space(folder):
    _bpe(folder)
    _config(
        folder,
        tokenizer_class="GPT2Tokenizer",
        add_prefix_space=True,
        add_bos_token=True,
        add_eos_token=True,
        pad_token=_token("<pad>", lstrip=True) | {"__type": "AddedToken"},
        unk_token="<unk>",
        padding_side="left",
        truncation_side="left",
    )


def generic_json(folder):
    (folder / "tokenizer.json").write_text(byte_level_json())
    _config(
        folder,
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|new|>"],
        chat_template=CHATML,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    _model(folder, model_type="gpt_oss")


def deepseek_json(folder):
    """Llama's class over a byte-level file that puts a token in front."""
    number = json.loads((VOCABULARIES / "vocab.json").read_text())["<|endoftext|>"]
    around = _around("<|endoftext|>", number)
    (folder / "tokenizer.json").write_text(byte_level_json(post_processor=around))
    _config(
        folder,
        tokenizer_class="LlamaTokenizerFast",
        add_bos_token=True,
        bos_token=_token("<|endoftext|>") | {"__type": "AddedToken"},
        eos_token=_token("<|im_end|>") | {"__type": "AddedToken"},
        pad_token="<|endoftext|>",
        legacy=True,
    )
    _model(folder, model_type="deepseek_v3")


def qwen2(folder):
    _bpe(folder)
    added = {"900": _token("<|endoftext|>"), "901": _token("<|im_start|>")}
    added["902"] = _token("<|im_end|>")
    _config(
        folder,
        tokenizer_class="Qwen2Tokenizer",
        added_tokens_decoder=added,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        add_prefix_space=False,
    )
    _model(folder, model_type="qwen2")


def qwen3_5(folder):
    (folder / "tokenizer.json").write_text(byte_level_json())
    _config(folder, tokenizer_class="Qwen2Tokenizer", pad_token="<|endoftext|>")
    _model(folder, model_type="qwen3_5")


def gpt_neox(folder):
    (folder / "tokenizer.json").write_text(byte_level_json())
    _config(folder, tokenizer_class="GPTNeoXTokenizer")
    _model(folder, model_type="gpt_neox")


def cohere(folder):
    (folder / "tokenizer.json").write_text(byte_level_json())
    _config(
        folder,
        tokenizer_class="CohereTokenizerFast",
        bos_token="<BOS_TOKEN>",
        chat_template=[
            {"name": "default", "template": CHATML},
            {"name": "tool_use", "template": "tools: {{ tools | tojson }}"},
        ],
    )
    _model(folder, model_type="cohere")


def roberta(folder):
    _bpe(folder)
    _config(folder, tokenizer_class="RobertaTokenizer")
    _model(folder, model_type="roberta")


def llama(folder):
    shutil.copy(VOCABULARIES / "llama.model", folder / "tokenizer.model")
    _config(
        folder,
        tokenizer_class="LlamaTokenizer",
        add_bos_token=True,
        add_eos_token=False,
        pad_token="</s>",
        model_max_length=40,
        legacy=False,
    )
    _model(folder, model_type="llama")


def llama_legacy(folder):
    shutil.copy(VOCABULARIES / "llama.model", folder / "tokenizer.model")
    _config(
        folder,
        tokenizer_class="LlamaTokenizer",
        add_bos_token=True,
        add_eos_token=True,
        legacy=True,
    )
    names = ("bos_token", "eos_token", "unk_token")
    texts = ("<s>", "</s>", "<unk>")
    special = {name: _token(text, normalized=True) for name, text in zip(names, texts, strict=True)}
    (folder / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": "<pad>"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": 700, "<extra>": 701}))
    _model(folder, model_type="llama")


def mistral(folder):
    """SentencePiece under a model type whose class is the general one."""
    shutil.copy(VOCABULARIES / "llama.model", folder / "tokenizer.model")
    added = {str(number): _token(text) for number, text in enumerate(("<unk>", "<s>", "</s>"))}
    _config(
        folder,
        tokenizer_class="LlamaTokenizer",
        add_bos_token=True,
        added_tokens_decoder=added,
        pad_token="</s>",
        legacy=False,
    )
    _model(folder, model_type="mistral")


def sentencepiece_alone(folder):
    """A model that normalizes, and nothing beside it but the model type."""
    golden = VOCABULARIES.parent / "golden" / "tok.model"
    shutil.copy(golden, folder / "tokenizer.model")
    _config(folder, pad_token="</s>")
    _model(folder, model_type="mistral")


def gemma(folder):
    shutil.copy(VOCABULARIES / "gemma.model", folder / "tokenizer.model")
    _config(folder, tokenizer_class="GemmaTokenizer", add_bos_token=True)
    _model(folder, model_type="gemma2")


def unigram(folder):
    shutil.copy(VOCABULARIES / "unigram.model", folder / "tokenizer.model")
    _config(folder, tokenizer_class="PreTrainedTokenizerFast", pad_token="</s>")
    _model(folder, model_type="umt5")


def t5(folder):
    shutil.copy(VOCABULARIES / "unigram.model", folder / "spiece.model")
    _config(folder, tokenizer_class="T5Tokenizer", extra_ids=10)
    _model(folder, model_type="t5")


def bert(folder):
    shutil.copy(VOCABULARIES / "vocab.txt", folder / "vocab.txt")
    _config(folder, tokenizer_class="BertTokenizer", do_lower_case=True, model_max_length=48)
    _model(folder, model_type="bert")


def bert_cased(folder):
    shutil.copy(VOCABULARIES / "vocab.txt", folder / "vocab.txt")
    _config(
        folder,
        tokenizer_class="BertTokenizerFast",
        do_lower_case=False,
        tokenize_chinese_chars=False,
        clean_up_tokenization_spaces=True,
    )
    _model(folder, model_type="bert")


def tiktoken(folder):
    """Llama 3's original form: ranks in ``tokenizer.model``, special tokens in the settings."""
    vocab = json.loads((VOCABULARIES / "vocab.json").read_text())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + place): byte for place, byte in enumerate(others)}
    del vocab["<|endoftext|>"]
    lines = [
        base64.b64encode(bytes(byte_of[symbol] for symbol in token)).decode() + f" {rank}\n"
        for rank, token in enumerate(sorted(vocab, key=vocab.get))
    ]
    (folder / "tokenizer.model").write_text("".join(lines))
    first = len(lines)
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    added = {str(first + place): _token(text) for place, text in zip((0, 1, 9), names, strict=True)}
    _config(
        folder,
        tokenizer_class="PreTrainedTokenizerFast",
        added_tokens_decoder=added,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
        add_bos_token=True,
    )
    _model(folder, model_type="llama")


KINDS = {
    make.__name__: make
    for make in (
        gpt2,
        gpt2_prefix_space,
        generic_json,
        deepseek_json,
        qwen2,
        qwen3_5,
        gpt_neox,
        cohere,
        roberta,
        llama,
        llama_legacy,
        mistral,
        sentencepiece_alone,
        gemma,
        unigram,
        t5,
        bert,
        bert_cased,
        tiktoken,
    )
}

# ---- texts ----

_RANGES = {
    "ascii": (32, 126),
    "latin": (0xA1, 0x24F),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x4FF),
    "hebrew": (0x590, 0x5F4),
    "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "thai": (0xE01, 0xE5B),
    "marks": (0x300, 0x36F),
    "punctuation": (0x2000, 0x206F),
    "signs": (0x2190, 0x25FF),
    "kana": (0x3041, 0x30FF),
    "han": (0x4E00, 0x9FA5),
    "hangul": (0xAC00, 0xD7A3),
    "compatibility": (0xF900, 0xFB06),
    "wide": (0xFF01, 0xFFE6),
    "mathematics": (0x1D400, 0x1D7FF),
    "emoji": (0x1F300, 0x1FAFF),
    "any": (1, 0x10FFFF),
}
_WORDS = (
    "the harbour lamp isn't Red they'll we've I'm 1234 3.14 don't <s> </s> <unk> <pad> [MASK] "
    "<|endoftext|> <|im_start|> <|im_end|> <tool> <extra_id_3> <|eot_id|> <0x0A> \u2581 "
    "\u2581the caf\u00e9 cafe\u0301 \u00dc U\u0308 \ufb01n \u0130stanbul "
    "\U0001f468\u200d\U0001f469 ..."
).split(" ")
_GAPS = (" ", " ", " ", "  ", "\n", "\n\n", "\t", " \n ", "", "\u00a0", "\u3000", "\r\n", "   ")


def texts(count=NUM_TEXTS, seed=5):
    """Random texts of mixed scripts; some are odd on purpose."""
    draw = random.Random(seed)
    fixed = ["", " ", "  ", "\n", "a", " a", "a ", "\u2581", "hello!", "I love Beijing, because"]

    def run():
        low, high = _RANGES[draw.choice(list(_RANGES))]
        codes = (draw.randint(low, high) for _ in range(draw.randint(1, 6)))
        return "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)

    def one():
        parts = []
        for _ in range(draw.randint(1, 9)):
            parts += [draw.choice(_WORDS) if draw.random() < 0.5 else run(), draw.choice(_GAPS)]
        return "".join(parts)

    return fixed + [one() for _ in range(count - len(fixed))]


# ---- calls ----

_BATCH = ["Ada finds a red lamp.", "", "the harbour <s> lamp isn't red, and it is far away", "a"]
_PAIRS = ["near the sea", "b c", "", "one two three four five six seven"]


def calls():
    """Name -> arguments of a call: one text, pairs and batches, padded and cut in every way."""
    found = {
        "one": {"text": _BATCH[0]},
        "pair": {"text": _BATCH[0], "text_pair": _PAIRS[0]},
        "no special": {"text": _BATCH[0], "text_pair": _PAIRS[0], "add_special_tokens": False},
        "batch": {"text": _BATCH},
        "pairs": {"text": _BATCH, "text_pair": _PAIRS},
        "target": {"text": _BATCH[0], "text_target": _PAIRS[0]},
        "words": {"text": ["Ada", "finds", "a"], "is_split_into_words": True},
        "split special": {"text": _BATCH[2], "split_special_tokens": True},
        "all": {
            "text": _BATCH,
            "text_pair": _PAIRS,
            "return_token_type_ids": True,
            "return_special_tokens_mask": True,
            "return_offsets_mapping": True,
            "return_length": True,
            "padding": True,
        },
        "bare": {"text": _BATCH, "return_attention_mask": False},
        "overflow": {
            "text": _BATCH,
            "max_length": 8,
            "truncation": True,
            "stride": 2,
            "return_overflowing_tokens": True,
            "padding": "max_length",
        },
        "multiple": {"text": _BATCH, "padding": True, "pad_to_multiple_of": 8},
        "tensors": {"text": _BATCH, "padding": True, "return_tensors": "np"},
        "one tensor": {"text": _BATCH[0], "return_tensors": "np"},
    }
    for padding in (False, True, "longest", "max_length"):
        for truncation in (None, False, True, "only_first", "only_second"):
            for side in ("left", "right"):
                for length in (None, 12):
                    is_pair = truncation == "only_second"
                    found[f"{padding} {truncation} {side} {length}"] = {
                        "text": _BATCH,
                        **({"text_pair": _PAIRS} if is_pair else {}),
                        "padding": padding,
                        "truncation": truncation,
                        "padding_side": side,
                        "max_length": length,
                    }
    return found
