# SPDX-License-Identifier: Apache-2.0
"""Files that want to hurt whoever opens them: memory without end, time without end, places outside.

Usage: python hostile_files.py FOLDER KIND. Opens those of a kind in this process, which may have
half a GB more than at its start, and each time a few seconds; prints one JSON line of what came of
it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import conversion_killer as conversions

from mindspeed_ms.formats.containers import mindspore_file, sealed_json
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers.torch_file import TorchFile, flat_names, plain
from mindspeed_ms.training.conversion import ConvertOptions, open_source

SECONDS = 20
MEMORY = 512 << 20


def opcodes(*parts):
    """A pickle of protocol 2."""
    return b"\x80\x02" + b"".join(parts) + b"."


def called(name, *arguments):
    """A call of a builtin."""
    return b"c__builtin__\n" + name + b"\n(" + b"".join(arguments) + b"tR"


def tower(levels, leaf, start, repeated, end):
    """Containers that name the one below ten times, which is there once."""
    body = leaf + b"q\x000"
    for level in range(levels):
        below = b"h" + bytes([level])
        body += start + b"".join(repeated(number) + below for number in range(10)) + end
        body += b"q" + bytes([level + 1]) + b"0"
    return body + b"h" + bytes([levels])


def lists(levels):
    return tower(levels, b"]", b"](", lambda number: b"", b"e")


def mappings(levels):
    return tower(levels, b"}", b"}(", lambda number: b"K" + bytes([number]), b"u")


def args_of(value):
    """``{"args": Namespace(a=value)}``."""
    return opcodes(
        b"}X\x04\x00\x00\x00args", b"cargparse\nNamespace\n)R}X\x01\x00\x00\x00a", value, b"sbs"
    )


LONG = struct.pack("<Q", 1 << 40)
HUGE_INT = b"\x8a\x06" + (1 << 45).to_bytes(6, "little")
PICKLES = {
    "memo at 2**31": opcodes(b"Nr\xff\xff\xff\x7f"),
    "an array of bytes that is only claimed": opcodes(b"\x96" + LONG),
    "bytes that are only claimed": opcodes(b"\x8e" + LONG + b"x"),
    "a frame that is only claimed": opcodes(b"\x95" + LONG + b"N"),
    "an array by its size": opcodes(b"cbuiltins\nbytearray\n(", HUGE_INT, b"tR"),
    "copies of a long list": opcodes(
        b"](" + b"N" * 100_000 + b"eq\x00",
        b"](" + b"cbuiltins\nlist\n(h\x00tR" * 20_000 + b"e",
    ),
    "a key nested deep": opcodes(b"}", b"N" + b"\x85" * 150_000, b"Ns"),
    "a set of something nested deep": opcodes(
        b"cbuiltins\nfrozenset\n(](", b"N" + b"\x85" * 150_000, b"etR"
    ),
    "pairs with a key nested deep": opcodes(
        b"ccollections\nOrderedDict\n(](", b"N" + b"\x85" * 150_000, b"N\x86", b"etR"
    ),
    "keys that all have one hash": opcodes(
        b"}(",
        b"".join(
            b"\x8a\x0b" + (i * ((1 << 61) - 1)).to_bytes(11, "little") + b"N" for i in range(50_000)
        ),
        b"u",
    ),
    "lists nested deep": args_of(b"]" * 200_000 + b"a" * 199_999),
    "a list in itself": args_of(b"]q\x00h\x00a"),
    "a tower of lists": args_of(lists(12)),
    "a tower in the model": opcodes(b"}X\x05\x00\x00\x00model", mappings(12), b"s"),
    "a long text again and again": args_of(
        b"X\x40\x42\x0f\x00" + b"x" * 1_000_000 + b"q\x000](" + b"h\x00" * 100_000 + b"e"
    ),
    "a call": opcodes(b"cos\nsystem\n(X\x04\x00\x00\x00truetR"),
    "state for a function": opcodes(
        b"ctorch._utils\n_rebuild_parameter\n}X\x0c\x00\x00\x00__defaults__)sb"
    ),
    "state for a class": opcodes(b"cargparse\nNamespace\nN}X\x01\x00\x00\x00aNs\x86b"),
    "an extension": opcodes(b"\x82\x01"),
    "a name as reference": opcodes(b"Pabc\n"),
    "a number of many digits": opcodes(b"I" + b"9" * 100_000 + b"\n"),
    "a stack that is empty": opcodes(b"0000"),
    "no end": b"\x80\x02" + b"N" * 1000,
}


def archive(path, entries, method=zipfile.ZIP_STORED):
    """A ZIP archive."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


def torch_files(root):
    """(name, function that reads) of archives."""
    for name, data in PICKLES.items():
        assert data.endswith(b".") or name == "no end"
        yield name, archive(root / f"{len(list(root.iterdir()))}.pt", [("a/data.pkl", data)])
    path = root / "i.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("a/data.pkl", "w", force_zip64=True) as entry:
            for _ in range(40):
                entry.write(bytes(20 << 20))
    yield "a pickle that inflates", path
    names = [("a/data.pkl", b"\x80\x02}."), ("b/data.pkl", b"\x80\x02].")]
    yield "two pickles", archive(root / "two.pt", names)
    path = archive(root / "over.pt", [("a/data.pkl", b"\x80\x02}."), ("a/data/0", b"x" * 99)])
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = bytes(4)  # begins where the first does
    path.write_bytes(data)
    yield "entries over each other", path
    path = archive(root / "size.pt", [("a/data.pkl", b"\x80\x02}.")])
    data = bytearray(path.read_bytes())
    first = data.index(b"PK\x01\x02")
    data[first + 20 : first + 28] = b"\xf0\xff\xff\x7f" * 2
    path.write_bytes(data)
    yield "a size that is only claimed", path


def read_torch(path):
    """Read a file and walk through what it holds, as readers do."""
    content = TorchFile(path).content
    if isinstance(content, dict):
        if "args" in content:
            json.dumps(plain(vars(content["args"])))
        list(flat_names(content))


def safetensors_files(root):
    """Headers that claim."""
    place = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    sound = json.dumps({"a": place}).encode()

    def file(name, header, data=bytes(8), length=None):
        path = root / f"{name}.safetensors"
        size = len(header) if length is None else length
        path.write_bytes(size.to_bytes(8, "little") + header + data)
        return name, path

    def with_place(name, **changed):
        return file(name, json.dumps({"a": {**place, **changed}}).encode())

    yield file("header of 2**62 bytes", sound, length=1 << 62)
    yield file("nested deep", b"[" * 1_000_000)
    yield file("twice", b'{"a":%b,"a":%b}' % ((json.dumps(place).encode(),) * 2))
    yield file("many digits", b'{"a":' + b"9" * 100_000 + b"}")
    yield file("a list", b"[]", b"")
    yield with_place("before the start", data_offsets=[-8, 0])
    yield with_place("huge", shape=[1 << 40, 1 << 40], data_offsets=[0, 1 << 82])
    yield with_place("negative", shape=[-1, -2])
    yield with_place("fractions", shape=[2.0])
    yield with_place("true", shape=[True, 2])
    yield with_place("too small", shape=[1])
    yield with_place("no type", dtype=None)
    both = {"a": place, "b": place}
    yield file("over each other", json.dumps(both).encode())
    yield file("a gap", json.dumps({"a": {**place, "data_offsets": [8, 16]}}).encode(), bytes(16))
    yield file("more behind", sound, bytes(9))


def mindspore_files(root):
    """Messages that claim."""
    path = root / "sound.ckpt"
    entry = safetensors.Entry("a", "F32", (2,), safetensors.np.zeros(2, safetensors.np.float32))
    mindspore_file.write_file(path, [entry])
    sound = path.read_bytes()
    variants = {
        "a length of 2**63": b"\x0a" + b"\xff" * 8 + b"\x7f",
        "a number without end": b"\x0a" + b"\xff" * 40,
        "twice": sound + sound,
        "a hole": sound + b"\x12\x00",
        "no tensor": b"\x0a\x03\x0a\x01a",
        "another size": sound.replace(b"\x08\x02", b"\x08\x03"),
        "no text": sound.replace(b"\x01a", b"\x01\xff"),
    }
    for name, data in variants.items():
        path = root / f"{len(list(root.iterdir()))}.ckpt"
        path.write_bytes(data)
        yield name, path


def own_folder(root, change):
    """This project's format with another index that is sealed again."""
    conversions.converted(
        conversions.tiny_model(root / "source", 1.0), root / "own", {"to": "mindspeed_ms"}
    )
    (folder,) = (root / "own").glob("iter_*")
    path = folder / "index.json"
    index = json.loads(path.read_text())
    del index["seal"]
    change(index)
    path.write_text(sealed_json.dumps(index))
    return folder


def _rename(name):
    def change(index):
        (old,) = index["files"]
        index["files"][name] = index["files"].pop(old)
        for tensor in index["tensors"].values():
            for piece in tensor["pieces"]:
                piece["file"] = name

    return change


def _in_pieces(**changed):
    def change(index):
        for tensor in index["tensors"].values():
            tensor["pieces"][0].update(changed)

    return change


def _in_tensors(**changed):
    def change(index):
        for tensor in index["tensors"].values():
            tensor.update(changed)

    return change


INDICES = {
    "a file above": _rename("../../../../etc/passwd"),
    "a file of the system": _rename("/etc/passwd"),
    "a name with a zero": _rename("a\0b"),
    "an offset before the file": _in_pieces(offset=-4),
    "an offset behind it": _in_pieces(offset=1 << 40),
    "an offset that is a text": _in_pieces(offset="0"),
    "a region outside": _in_pieces(region=[[[0, 1 << 40]], [[0, 8]]]),
    "a region below 0": _in_pieces(region=[[[-1, 2]], [[0, 8]]]),
    "a range outside": _in_pieces(range=[0, 1 << 40]),
    "a range backwards": _in_pieces(range=[5, 2]),
    "a shape without end": _in_tensors(shape=[1 << 40, 1 << 40]),
    "no shape": _in_tensors(shape=None),
    "an unknown type": _in_tensors(dtype="F4"),
    "no pieces": _in_tensors(pieces=[]),
    "a list of tensors": lambda index: index.update(tensors=[]),
    "no files": lambda index: index.pop("files"),
    "a size that is a text": lambda index: next(iter(index["files"].values())).update(bytes="1"),
    "nothing": lambda index: [index.pop(key) for key in list(index) if key != "format"],
}


class _TooLongError(BaseException):
    """A reader did not come back."""


def _ring(*unused):
    raise _TooLongError


def tried(read):
    """One line of what came of it."""
    signal.alarm(SECONDS)
    started = time.monotonic()
    try:
        read()
        found = "read"
    except (ValueError, OSError) as error:
        found = f"refused: {error}" if "\n" not in str(error) else f"LINES {error}"
    except _TooLongError:
        found = "HANGS"
    except BaseException as error:  # noqa: BLE001  (that is what is looked for)
        found = f"TRACEBACK {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    seconds = time.monotonic() - started
    return found[:300] if seconds < SECONDS / 2 else f"SLOW ({seconds:.0f} s) {found[:200]}"


def index_folders(root):
    """Checkpoints whose indices claim."""
    for number, (name, change) in enumerate(INDICES.items()):
        folder = root / str(number)
        folder.mkdir()
        yield name, own_folder(folder, change)


KINDS = {
    "torch": (torch_files, read_torch),
    "safetensors": (safetensors_files, safetensors.read_header),
    "mindspore": (mindspore_files, mindspore_file.read_index),
    "index": (index_folders, lambda path: open_source(path, ConvertOptions())),
}


def open_all(files, read, root):
    """Open all files of a kind within the limits, and tell what came of each."""
    every = list(files(root))
    signal.signal(signal.SIGALRM, _ring)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    report = {name: tried(partial(read, path)) for name, path in every}
    sys.stdout.write(json.dumps(report) + "\n")


def main():
    open_all(*KINDS[sys.argv[2]], Path(sys.argv[1]))


if __name__ == "__main__":
    main()
