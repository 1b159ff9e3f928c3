# SPDX-License-Identifier: Apache-2.0
"""Files of a tokenizer whose contents are of other types, or less, than they have to be."""

import copy
import json
import random

import pytest

from mindspeed_ms import AutoTokenizer
from mindspeed_ms.data.tokenizers import build_tokenizer

tokenizers = pytest.importorskip("tokenizers")

VALUES = [None, [], {}, "x", "", -1, 10**9, 1e300, [1], {"a": 1}, True, [None], {"content": 5}]
CLASSES = ("PreTrainedTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer")
ALTERATIONS = 40


def contents(class_name):
    """A tokenizer by byte-level BPE, every description there is beside it."""
    steps = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = steps(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=262,
        initial_alphabet=steps.alphabet(),
        show_progress=False,
        special_tokens=["</s>", "<s>"],
    )
    tokenizer.train_from_iterator(["a cat and a hat"] * 9, trainer)
    return {
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": class_name,
            "eos_token": "</s>",
            "bos_token": {"content": "<s>", "lstrip": False, "rstrip": False},
            "added_tokens_decoder": {"0": {"content": "</s>", "special": True}},
            "additional_special_tokens": ["</s>"],
            "chat_template": "{{ messages }}",
            "padding_side": "left",
        },
        "special_tokens_map.json": {"pad_token": {"content": "</s>"}},
        "added_tokens.json": {"</s>": 0},
        "generation_config.json": {"eos_token_id": [0]},
        "config.json": {"model_type": "llama", "vocab_size": 262},
    }


def places(node, at=()):
    """The way to every value but most entries of the vocabulary."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for number, (key, value) in enumerate(pairs):
        if number < 10:
            yield (*at, key)
            if isinstance(value, dict | list):
                yield from places(value, (*at, key))


def altered(content, seed):
    rng, content = random.Random(seed), copy.deepcopy(content)
    way = rng.choice(list(places(content)))
    node = content
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = rng.choice(VALUES)
    return content


@pytest.mark.parametrize("class_name", CLASSES)
def test_what_is_altered_is_one_line_or_a_tokenizer(tmp_path, class_name):
    sound = contents(class_name)

    def put(name, content):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")

    def use():
        tokenizer = build_tokenizer("HuggingFaceTokenizer", tokenizer_model=str(tmp_path))
        ids = tokenizer.tokenize("a cat and a hat")
        _ = tokenizer.eos, tokenizer.bos, tokenizer.pad
        return all(0 <= number < tokenizer.vocab_size for number in ids)

    for name, content in sound.items():
        put(name, content)
    assert use()
    refused = 0
    for name, content in sound.items():
        for seed in range(ALTERATIONS):
            put(name, altered(content, seed))
            try:
                assert use(), f"{name}, seed {seed}"
            except (ValueError, RuntimeError) as error:
                assert "\n" not in str(error), f"{name}, seed {seed}: {error}"
                refused += 1
        put(name, content)
    assert refused > 10


@pytest.mark.parametrize("class_name", ["PreTrainedTokenizerFast", "GPT2Tokenizer"])
def test_a_panic_of_the_library_is_one_line(tmp_path, class_name):
    """A prefix longer than the pieces makes it index behind their ends."""
    files = contents(class_name)
    files["tokenizer.json"]["model"]["continuing_subword_prefix"] = "é#"
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    if class_name == "GPT2Tokenizer":
        assert AutoTokenizer.from_pretrained(str(tmp_path))("a cat")["input_ids"]  # has its own
    else:
        with pytest.raises(ValueError, match="is not a tokenizer file .*; copy it again"):
            AutoTokenizer.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_replacements_that_multiply_are_refused(tmp_path, class_name, part):
    files = contents(class_name)
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    key = "normalizers" if part == "normalizer" else "decoders"
    files["tokenizer.json"][part] = {"type": "Sequence", key: [step] * 40}
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match="one character may become more than 1000"):
        AutoTokenizer.from_pretrained(str(tmp_path))
