# SPDX-License-Identifier: Apache-2.0
"""``torch.save`` files written without torch, one tensor after another."""

from __future__ import annotations

import itertools
import math
import pickle
import struct
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.containers.ahead import one_ahead
from mindspeed_ms.formats.containers.new_file import NewFile
from mindspeed_ms.formats.containers.safe_pickle import STORAGE_OF, TorchDtype
from mindspeed_ms.formats.containers.zip_writer import ZipWriter

_STEM = "archive"

"""Names of types in files -> in torch."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to write; its numbers are asked for when their turn comes."""

    dtype: str
    shape: tuple[int, ...]
    values: Callable[[], Iterable[np.ndarray]]
    """The elements in order, in one array or several."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * dtypes.width(self.dtype)

    @classmethod
    def of(cls, array: np.ndarray, dtype: str | None = None) -> TensorSpec:
        """A tensor that is in memory."""
        return cls(dtype or dtypes.name_of(array), array.shape, lambda: [array])


@dataclass(frozen=True, slots=True)
class Global:
    """Something that a pickle names."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """What a pickle calls, and the state it gives the result."""

    function: Global
    args: tuple
    state: Any = None


class _Pickle:
    """Protocol 2, as far as it is needed: trees of plain data, tensors and types."""

    def __init__(self) -> None:
        self.out = bytearray(pickle.PROTO + b"\x02")
        self.storages: list[TensorSpec] = []

    def finish(self, value: Any) -> bytes:
        """The pickle of a value."""
        self.add(value)
        self.out += pickle.STOP
        return bytes(self.out)

    def add(self, value: Any) -> None:
        """Append a value.

        Raises:
            ValueError: a type that has no place in a checkpoint.
        """
        for kinds, method in self._METHODS:
            if isinstance(value, kinds):
                method(self, value)
                return
        raise ValueError(f"{type(value).__name__} cannot be written to a torch file")

    def _constant(self, value: bool | None) -> None:
        self.out += {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]

    def _int(self, value: int) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self.out += pickle.BININT + struct.pack("<i", value)
            return
        data = pickle.encode_long(value)
        self.out += pickle.LONG1 + bytes([len(data)]) + data

    def _float(self, value: float) -> None:
        self.out += pickle.BINFLOAT + struct.pack(">d", value)

    def _str(self, value: str) -> None:
        data = value.encode()
        self.out += pickle.BINUNICODE + struct.pack("<I", len(data)) + data

    def _tuple(self, value: tuple) -> None:
        self.out += pickle.MARK
        for item in value:
            self.add(item)
        self.out += pickle.TUPLE

    def _list(self, value: list) -> None:
        self.out += pickle.EMPTY_LIST + pickle.MARK
        for item in value:
            self.add(item)
        self.out += pickle.APPENDS

    def _dict(self, value: Mapping) -> None:
        if isinstance(value, OrderedDict):
            self.add(Call(Global("collections", "OrderedDict"), ()))
        else:
            self.out += pickle.EMPTY_DICT
        self.out += pickle.MARK
        for key, item in value.items():
            self.add(key)
            self.add(item)
        self.out += pickle.SETITEMS

    def _global(self, value: Global) -> None:
        self.out += pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()

    def _call(self, value: Call) -> None:
        self.add(value.function)
        self.add(value.args)
        self.out += pickle.REDUCE
        if value.state is not None:
            self.add(value.state)
            self.out += pickle.BUILD

    def _namespace(self, value: Namespace) -> None:
        self.add(Call(Global("argparse", "Namespace"), (), dict(vars(value))))

    def _dtype(self, value: TorchDtype) -> None:
        self.add(Global("torch", value.name))

    def _tensor(self, value: TensorSpec) -> None:
        self.add(Global("torch._utils", "_rebuild_tensor_v2"))
        self.out += pickle.MARK
        storage = Global("torch", STORAGE_OF[value.dtype])
        size = int(np.prod(value.shape, dtype=np.int64))
        self.add(("storage", storage, str(len(self.storages)), "cpu", size))
        self.out += pickle.BINPERSID
        self.storages.append(value)
        strides, step = [], 1
        for extent in reversed(value.shape):
            strides.append(step)
            step *= extent
        rest: list[Any] = [0, value.shape, tuple(reversed(strides)), False, OrderedDict()]
        for item in rest:
            self.add(item)
        self.out += pickle.TUPLE + pickle.REDUCE

    def _array(self, value: np.ndarray) -> None:
        code = {"uint32": "u4", "uint8": "u1"}[value.dtype.name]
        dtype = Call(
            Global("numpy", "dtype"), (code, False, True), (3, "<", None, None, None, -1, -1, 0)
        )
        text = Call(Global("_codecs", "encode"), (value.tobytes().decode("latin1"), "latin1"))
        self.add(
            Call(
                Global("numpy.core.multiarray", "_reconstruct"),
                (
                    Global("numpy", "ndarray"),
                    (0,),
                    Call(Global("_codecs", "encode"), ("b", "latin1")),
                ),
                (1, tuple(value.shape), dtype, False, text),
            )
        )

    _METHODS: tuple[tuple[Any, Callable[..., None]], ...] = (
        ((type(None), bool), _constant),
        (int, _int),
        (float, _float),
        (str, _str),
        (tuple, _tuple),
        (list, _list),
        (Namespace, _namespace),
        (Mapping, _dict),
        (Global, _global),
        (Call, _call),
        (TorchDtype, _dtype),
        (TensorSpec, _tensor),
        (np.ndarray, _array),
    )


def write_file(path: Path, content: Any) -> int:
    """Write a file and bring it to the disk; return its bytes."""
    pickled = _Pickle()
    data = pickled.finish(content)
    expected = len(data) + sum(tensor.num_bytes for tensor in pickled.storages)
    file = NewFile(path, expected)
    try:
        archive = ZipWriter(file)
        _short_entry(archive, "data.pkl", data)
        _short_entry(archive, "byteorder", b"little")
        for number, parts in itertools.groupby(
            one_ahead(_parts(pickled.storages)), key=lambda item: item[0]
        ):
            size = pickled.storages[number].num_bytes
            with archive.entry(f"{_STEM}/data/{number}", size) as entry:
                for _, part in parts:
                    entry.write_array(part)
        _short_entry(archive, "version", b"3\n")
        archive.finish()
    except BaseException:
        file.abandon()
        raise
    return file.close().num_bytes


def _short_entry(archive: ZipWriter, name: str, data: bytes) -> None:
    with archive.entry(f"{_STEM}/{name}", len(data)) as entry:
        entry.write(data)


def _parts(storages: list[TensorSpec]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, elements) of all storages in order, at least one each.

    An empty part comes only from a storage without elements: nothing else is read ahead meanwhile.
    """
    for number, tensor in enumerate(storages):
        is_empty = True
        for part in tensor.values():
            yield number, part
            is_empty = False
        if is_empty:
            yield number, np.empty(0)
