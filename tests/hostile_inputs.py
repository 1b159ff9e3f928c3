# SPDX-License-Identifier: Apache-2.0
"""Inputs beside checkpoints that want to hurt whoever opens them, as ``hostile_files`` has it.

Usage: python hostile_inputs.py FOLDER KIND. Opens those of a kind in this process, which may have
half a GB more than at its start, and each time a few seconds; prints one JSON line of what came of
it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import file_mutations
import hostile_files
import input_kinds as kinds
import numpy as np

from mindspeed_ms.config.yaml_reader import read_yaml
from mindspeed_ms.data.tokenizers.text_sources import records_of
from mindspeed_ms.training.conversion import ConvertOptions, open_source

DEEP = "[" * 100_000 + "]" * 100_000
BIG = 1 << 62


# --- tokenizers -----------------------------------------------------------------------------------


def _inside(*way, value):
    """A change of a value inside JSON."""

    def change(content):
        for key in way[:-1]:
            content = content[key]
        content[way[-1]] = value(content.get(way[-1])) if callable(value) else value

    return change


def _added(number, text="x"):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": text, **flags}


def _split(pattern):
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _inside("pre_tokenizer", value=step)


def _sequence(levels):
    step = {"type": "NFC"}
    for _ in range(levels):
        step = {"type": "Sequence", "normalizers": [step]}
    return _inside("normalizer", value=step)


def _grown(levels):
    """A text that doubles with each step."""
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return _inside("normalizer", value={"type": "Sequence", "normalizers": [step] * levels})


TOKENIZERS = {
    "an id of 2**32 - 1": _inside("model", "vocab", "zz", value=2**32 - 1),
    "an id of 2**31": _inside("model", "vocab", "zz", value=2**31),
    "an id of 2**70": _inside("model", "vocab", "zz", value=2**70),
    "an id below 0": _inside("model", "vocab", "zz", value=-1),
    "an id twice": _inside("model", "vocab", "zz", value=5),
    "an added id of 2**32 - 1": _inside("added_tokens", value=[_added(2**32 - 1)]),
    "an added id of 2**31": _inside("added_tokens", value=[_added(2**31)]),
    "an added token without a letter": _inside("added_tokens", value=[_added(269, "")]),
    "added tokens with one id": _inside("added_tokens", value=[_added(269), _added(269, "y")]),
    "an added token with a NUL": _inside("added_tokens", value=[_added(269, "a\0b")]),
    "half a pair": _inside("added_tokens", value=[_added(269, "\ud800")]),
    "a pattern that goes back": _split("(a+)+$"),
    "a pattern that goes back far": _split("(.*)*(.*)*(.*)*$x"),
    "a pattern that repeats": _split("(((((a{1,999}){1,999}){1,999}){1,999}){1,999})"),
    "a pattern that is none": _split("("),
    "a pattern of nothing": _split(""),
    "steps nested deep": _sequence(60),
    "steps nested deeper": _sequence(3000),
    "a text that grows": _grown(40),
    "a merge of what is not there": _inside("model", "merges", value=[["zz", "qq"]]),
    "merges that are numbers": _inside("model", "merges", value=[1, 2]),
    "a model that nobody knows": _inside("model", "type", value="Bomb"),
    "no model": _inside("model", value=None),
    "truncation to 2**62": _inside("truncation", value={"max_length": BIG, "stride": 0}),
    "padding to 2**40": _inside(
        "padding",
        value={
            "strategy": {"Fixed": 1 << 40},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
    ),
    "a post-processor that names itself": _inside(
        "post_processor",
        value={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 3,
            "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [BIG], "tokens": ["x"]}},
        },
    ),
}
SETTINGS = {
    "nested deep": lambda content: content.update(eos_token=json.loads("[" * 900 + "]" * 900)),
    "added tokens by huge ids": _inside("added_tokens_decoder", value={str(BIG): {"content": "x"}}),
    "added tokens by words": _inside("added_tokens_decoder", value={"one": {"content": "x"}}),
    "a length of 2**200": _inside("model_max_length", value=1 << 200),
    "an end that is a list": _inside("eos_token", value=["<|endoftext|>"]),
    "a class of the system": _inside("tokenizer_class", value="os.system"),
    "a class elsewhere": _inside("auto_map", value={"AutoTokenizer": ["../../x.py--T", None]}),
}


def tokenizers(root):
    """Folders of tokenizers."""
    sound = root / "sound"
    sound.mkdir()
    kinds.KINDS["tokenizer"].make(sound)
    both = [("tokenizer.json", TOKENIZERS), ("tokenizer_config.json", SETTINGS)]
    for file, changes in both:
        for number, (name, change) in enumerate(changes.items()):
            folder = shutil.copytree(sound, root / f"{file}.{number}")
            content = json.loads((folder / file).read_text())
            change(content)
            (folder / file).write_text(json.dumps(content))
            yield f"{file}: {name}", folder
        folder = shutil.copytree(sound, root / f"{file}.deep")
        (folder / file).write_text(DEEP)
        yield f"{file}: brackets", folder


# --- models of Hugging Face -----------------------------------------------------------------------

CONFIGS = {
    "10**18 layers": {"num_hidden_layers": 10**18},
    "10**7 layers": {"num_hidden_layers": 10**7},
    "a width of 10**15": {"hidden_size": 10**15},
    "a vocabulary of 10**18": {"vocab_size": 10**18},
    "a vocabulary below 0": {"vocab_size": -5},
    "heads that are a fraction": {"num_attention_heads": 1.5},
    "no heads": {"num_attention_heads": 0},
    "more groups than heads": {"num_key_value_heads": 7},
    "a number of 4000 digits": {"num_hidden_layers": int("9" * 4000)},
    "a number beyond floats": {"rms_norm_eps": 10**400},
    "a list nested deep": {"rope_scaling": json.loads("[" * 900 + "]" * 900)},
    "many kinds of layers": {"layer_types": ["full_attention"] * 100_000},
    "a type with a NUL": {"model_type": "llama\0"},
    "a type that is a path": {"model_type": "../../etc"},
    "a type that is a list": {"model_type": ["llama"]},
    "another type": {"model_type": "gpt2"},
    "code of its own": {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"},
    "a quantization that nobody knows": {"quantization_config": {"quant_method": "\ud800"}},
    "a quantization of 0 bits": {"quantization_config": {"quant_method": "gptq", "bits": 0}},
    "a type of numbers": {"torch_dtype": "float4096"},
    "its own name twice": {"text_config": {"text_config": {"model_type": "llama"}}},
}


def _model(root, name, change):
    folder = shutil.copytree(root / "sound", root / name)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return folder


PLACES = {
    "a file above": "../secret.safetensors",
    "a file of the system": "/etc/passwd",
    "a file of a process": "/proc/self/mem",
    "nothing": "",
    "the folder": ".",
    "a name with a NUL": "a\0b",
    "half a pair": "\ud800.safetensors",
    "a name of 5000 letters": "x" * 5000,
    "a number": 7,
    "a list": ["model-00001-of-00002.safetensors"],
    "a way round": "x/../model-00001-of-00002.safetensors",
}
FILES = ("pipe", "circle", "device", "folder", "above", "nothing")


def _replaced(path, what):
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "nothing":
        path.touch()
    else:
        above = path.parent.parent / "secret.safetensors"
        path.symlink_to({"circle": path, "device": "/dev/zero", "above": above}[what])


def models(root):
    """Folders of models."""
    sound = file_mutations.make(root, "huggingface-shards").rename(root / "sound")
    shutil.copy(sound / "model-00001-of-00002.safetensors", root / "secret.safetensors")
    for number, (name, change) in enumerate(CONFIGS.items()):
        yield f"config.json: {name}", _model(root, f"config{number}", change)
    folder = _model(root, "deep", {})
    (folder / "config.json").write_text(DEEP)
    yield "config.json: brackets", folder
    for number, (name, place) in enumerate(PLACES.items()):
        folder = _model(root, f"place{number}", {})
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"][next(iter(index["weight_map"]))] = place
        path.write_text(json.dumps(index))
        yield f"index.json: {name}", folder
    for file in ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        for what in FILES:
            folder = _model(root, f"{file}.{what}", {})
            _replaced(folder / file, what)
            yield f"{file}: {what}", folder
    for name, header in headers():
        folder = _model(root, name, {})
        path = folder / "model-00001-of-00002.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        yield f"header: {name}", folder


def headers():
    """Headers that are sound as JSON and too much of it."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield "of many tensors", json.dumps({f"t{n}": empty for n in range(60_000)}).encode()
    yield "of many dimensions", json.dumps({"t": {**empty, "shape": [0] * 100_000}}).encode()
    yield "of spaces", b"{}" + b" " * 20_000_000
    yield "of notes", json.dumps({"__metadata__": {str(n): "x" for n in range(100_000)}}).encode()
    yield "of a long name", json.dumps({"t" * 5_000_000: empty}).encode()


# --- data -----------------------------------------------------------------------------------------


def _idx(**changed):
    """The index of a dataset with other contents."""
    sound = {
        "magic": b"MMIDIDX\0\0",
        "version": 1,
        "code": 8,
        "sequences": 5,
        "documents": 6,
        "lengths": [5, 9, 3, 30, 17],
        "pointers": [0, 10, 28, 34, 94],
        "ends": [0, 1, 2, 3, 4, 5],
    }
    part = {**sound, **changed}
    return b"".join(
        (
            part["magic"],
            np.uint64(part["version"]).tobytes(),
            np.uint8(part["code"]).tobytes(),
            np.uint64(part["sequences"]).tobytes(),
            np.uint64(part["documents"]).tobytes(),
            np.array(part["lengths"], np.int32).tobytes(),
            np.array(part["pointers"], np.int64).tobytes(),
            np.array(part["ends"], np.int64).tobytes(),
        )
    )


INDICES = {
    "2**63 sequences": {"sequences": 1 << 63},
    "2**61 documents": {"documents": 1 << 61},
    "no sequences": {"sequences": 0, "documents": 1, "lengths": [], "pointers": [], "ends": [0]},
    "no documents": {"documents": 0, "ends": []},
    "another version": {"version": 2},
    "another type": {"code": 4},
    "a type that is none": {"code": 200},
    "a length below 0": {"lengths": [5, 9, -3, 30, 17]},
    "a length of 2**31 - 1": {"lengths": [5, 9, 2**31 - 1, 30, 17]},
    "lengths that are exchanged": {"lengths": [9, 5, 3, 30, 17]},
    "a place below 0": {"pointers": [-10, 10, 28, 34, 94]},
    "a place beyond": {"pointers": [0, 10, 28, 34, BIG]},
    "places over each other": {"pointers": [0, 0, 0, 0, 0]},
    "an odd place": {"pointers": [1, 10, 28, 34, 94]},
    "ends that go back": {"ends": [0, 3, 2, 1, 4, 5]},
    "an end beyond": {"ends": [0, 1, 2, 3, 4, 500]},
    "an end before all": {"ends": [0, 1, 2, 3, 4, 4]},
    "a beginning later": {"ends": [2, 2, 2, 3, 4, 5]},
    "more behind": {"ends": [0, 1, 2, 3, 4, 5, 6, 7]},
}


def indices(root):
    """Datasets whose index lies."""
    sound = root / "sound"
    sound.mkdir()
    kinds.KINDS["index"].make(sound)
    shutil.rmtree(sound / "cache")
    assert (sound / "d.idx").read_bytes() == _idx(), "the sound one is known"
    for number, (name, change) in enumerate(INDICES.items()):
        folder = shutil.copytree(sound, root / str(number))
        (folder / "d.idx").write_bytes(_idx(**change))
        yield name, folder


LINES = {
    "a NUL": b'{"text": "a\\u0000b"}\n',
    "a NUL of its own": b'{"text": "a\0b"}\n',
    "half a pair": b'{"text": "\\ud800"}\n',
    "two halves the wrong way": b'{"text": "\\udc00\\ud800"}\n',
    "bytes that are no text": b'{"text": "\xff\xfe"}\n',
    "another encoding": '{"text": "a"}\n'.encode("utf-16"),
    "brackets": DEEP.encode() + b"\n",
    "brackets in a field": b'{"text": ' + DEEP.encode() + b"}\n",
    "a number of a million digits": b'{"text": ' + b"9" * 1_000_000 + b"}\n",
    "a text that is a number": b'{"text": 7}\n',
    "a text that is missing": b'{"txt": "a"}\n',
    "a text that is null": b'{"text": null}\n',
    "the field twice": b'{"text": "a", "text": "b"}\n',
    "a list": b"[1]\n",
    "NaN": b"NaN\n",
    "many empty lines": b"\n" * 100_000,
    "line ends of all kinds": b'{"text": "a\\u2028b"}\r{"text": "c"}\x0b\x0c\n',
    "no end": b'{"text": "a"',
    "many fields": json.dumps({str(n): n for n in range(50_000)}).encode(),
}


def lines(root):
    """Files of texts."""
    for number, (name, data) in enumerate(LINES.items()):
        path = root / f"{number}.jsonl"
        path.write_bytes(b'{"text": "one"}\n' + data)
        yield name, path


TOWER = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGED = "a0: &a0 {k: v}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], k{n}: v}}\n" for n in range(1, 12)
)
YAMLS = {
    "a tower of aliases": TOWER,
    "a tower of merged keys": MERGED,
    "a list in itself": "a: &a [*a]\n",
    "a mapping in itself": "a: &a {b: *a}\n",
    "merged with itself": "a: &a\n  <<: *a\n",
    "an anchor that is nowhere": "a: *b\n",
    "an anchor twice": "a: &x 1\nb: &x 2\nc: *x\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a key that is a mapping": "? {a: b}\n: 1\n",
    "a key twice": "a: 1\na: 2\n",
    "a key by an alias": "a: &k x\n*k : 1\nx: 2\n",
    "a call": "a: !!python/object/apply:os.system [true]\n",
    "a name": "a: !!python/name:os.system\n",
    "a module": "a: !!python/module:os\n",
    "a tag": "a: !bomb 1\n",
    "a tag by a word": "%TAG ! tag:yaml.org,2002:\n---\na: !python/name:os.system\n",
    "two documents": "a: 1\n---\na: 2\n",
    "a date": "a: 2024-02-30\n",
    "a time": "a: 2024-02-28T99:99:99Z\n",
    "bytes": "a: !!binary ////\n",
    "bytes that are none": "a: !!binary '%%%'\n",
    "a set": "a: !!set {x, y}\n",
    "pairs": "a: !!omap [x: 1, x: 2]\n",
    "an integer of words": "a: !!int x\n",
    "a number of words": "a: !!float x\n",
    "a number of a million digits": "a: " + "9" * 1_000_000 + "\n",
    "sixties": "a: 1:" + "59:" * 5000 + "59\n",
    "brackets": DEEP,
    "dashes": "- " * 20_000 + "x\n",
    "steps": "".join(" " * n + "a:\n" for n in range(3000)),
    "a NUL": "a: \0\n",
    "an escape beyond": 'a: "\\U00110000"\n',
    "half a pair": 'a: "\\uD800"\n',
    "a long key": "x" * 2_000_000 + ": 1\n",
    "tabs": "a:\n\tb: 1\n",
    "nothing": "",
    "a text": "x\n",
    "many tags": "%TAG !a! x\n" * 2 + "---\na: 1\n",
    "another version": "%YAML 9.9\n---\na: 1\n",
}


def yamls(root):
    """YAML files."""
    for number, (name, text) in enumerate(YAMLS.items()):
        path = root / f"{number}.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        yield name, path


def _read_model(folder):
    catalog, *_ = open_source(folder, ConvertOptions())
    with file_mutations.TensorReader() as reader:
        for tensor in catalog.tensors.values():
            reader.read(tensor)


KINDS = {
    "tokenizers": (tokenizers, kinds.KINDS["tokenizer"].read),
    "models": (models, _read_model),
    "indices": (indices, kinds.KINDS["index"].read),
    "lines": (lines, lambda path: list(records_of(str(path)))),
    "yamls": (yamls, read_yaml),
}


def main():
    hostile_files.open_all(*KINDS[sys.argv[2]], Path(sys.argv[1]))


if __name__ == "__main__":
    main()
