"""``torch.save`` files without torch: read in parts, and nothing in them is ever executed.

Such a file is a ZIP archive: ``data.pkl``, a pickle that describes the objects, and one entry per
storage with raw numbers, not compressed. The pickle is read by an unpickler that knows plain data,
tensors and types of numbers. Whatever else it names (enums, classes of other packages, functions)
becomes an inert note of what was named.

Source: PyTorch ``torch/serialization.py`` (layout).
"""

from __future__ import annotations

import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.formats.catalog import StoredPiece
from mindspeed_ms.plan.region import Region, Span

_STORAGES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
STORAGE_OF = {dtype: name for name, dtype in _STORAGES.items()}

_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True, slots=True)
class TorchDtype:
    """A type of numbers, such as ``torch.bfloat16``."""

    name: str

    def __str__(self) -> str:
        return f"torch.{self.name}"


@dataclass(frozen=True, slots=True)
class StorageRef:
    """Numbers of a file that tensors are views of."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as a pickle describes it."""

    storage: StorageRef
    offset: int
    """Elements before it in its storage."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order."""
        return self.strides == _row_major(self.shape) or 0 in self.shape

    @property
    def is_transposed(self) -> bool:
        """Whether it is a matrix that lies column by column."""
        return len(self.shape) == 2 and self.strides == (1, self.shape[0])


class Inert:
    """What a pickle named and nobody executed."""

    named = ""
    args: tuple = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.named}{self.args}>"

    # A pickle may fill containers of unknown classes.
    def append(self, item: Any) -> None:
        """Take an item, keep nothing."""

    def extend(self, items: Any) -> None:
        """Take items, keep nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *args: Any) -> Inert:
        """A note of a call that was not made."""
        return Inert(*args)


def inert_class(module: str, name: str) -> type[Inert]:
    """A class that stands for something that is not known here."""
    return type("Inert", (Inert,), {"named": f"{module}.{name}"})


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *unused: Any) -> Any:
    if not isinstance(storage, StorageRef):
        raise pickle.UnpicklingError("a tensor without a storage")
    return TensorRef(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(data: Any, *unused: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, kind: Any, args: tuple, *unused: Any) -> Any:
    """A tensor with attributes of its own, such as the fp32 copies of Megatron's 16-bit weights."""
    if function not in (_rebuild_tensor, _rebuild_parameter):
        raise pickle.UnpicklingError("a tensor of an unknown class")
    return function(*args)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "utf-8", "utf8", "ascii"):
        raise pickle.UnpicklingError(f"text in encoding {encoding!r}")
    return str(text).encode(encoding)


def _size(*args: Any) -> tuple[int, ...]:
    return tuple(args[0]) if args else ()


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): lambda *unused: {},
    ("argparse", "Namespace"): Namespace,
    ("types", "SimpleNamespace"): Namespace,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _size,
    ("_codecs", "encode"): _encode,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): bytearray,
}

_DTYPE_NAMES = {
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "float", "half", "double", "long", "float8_e4m3fn", "float8_e5m2", "complex64"),
}


class SafeUnpickler(pickle.Unpickler):
    """Builds plain data, tensor references and inert notes; imports nothing, calls nothing.

    Args:
        file: the pickle.
        known: further classes, for formats that need the contents of theirs.
    """

    def __init__(self, file: Any, known: Mapping[tuple[str, str], Any] | None = None) -> None:
        super().__init__(file)
        self._known = {**_KNOWN, **(known or {})}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for what a pickle names."""
        if (module, name) in self._known:
            return self._known[module, name]
        if module == "torch" and name in _STORAGES:
            return inert_class(module, name)
        if module == "torch" and name in _DTYPE_NAMES:
            return TorchDtype(name)
        return inert_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """A storage."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"an unknown reference {str(pid)[:40]}")
        kind = getattr(pid[1], "named", "").rpartition(".")[2]
        if kind not in _STORAGES:
            raise pickle.UnpicklingError(f"a storage of the unknown type {kind or pid[1]!r}")
        return StorageRef(str(pid[2]), _STORAGES[kind], int(pid[4]))


class TorchFile:
    """A ``torch.save`` file, or one that lies inside another file.

    Args:
        path: the file.
        start: bytes before it.
        size: its bytes; None for the rest of the file.
        known: see ``SafeUnpickler``.

    Raises:
        ValueError: it is none, or is damaged.
    """

    def __init__(
        self,
        path: Path,
        start: int = 0,
        size: int | None = None,
        known: Mapping[tuple[str, str], Any] | None = None,
    ) -> None:
        self.path, self._start = path, start
        size = path.stat().st_size - start if size is None else size
        try:
            with path.open("rb") as raw:
                window = _Window(raw, start, size)
                with zipfile.ZipFile(window) as archive:  # type: ignore[arg-type]
                    self._entries = {
                        info.filename.partition("/")[2]: info for info in archive.infolist()
                    }
                    with archive.open(self._entries["data.pkl"]) as data:
                        self.content = SafeUnpickler(data, known).load()
                self._offsets = {
                    name.removeprefix("data/"): self._data_offset(window, info)
                    for name, info in self._entries.items()
                    if name.startswith("data/")
                }
        except (zipfile.BadZipFile, KeyError, EOFError, IndexError) as error:
            raise ValueError(
                f"{path} is no complete torch file ({error}); it is damaged, or written by a "
                "torch before 1.6: use another checkpoint, or save it again with a newer torch"
            ) from None
        except (pickle.UnpicklingError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds what cannot be read safely: {error}") from None

    @staticmethod
    def _data_offset(window: _Window, info: zipfile.ZipInfo) -> int:
        if info.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(f"{info.filename} is compressed")
        window.seek(info.header_offset)
        header = window.read(_LOCAL_HEADER_BYTES)
        name, extra = (
            int.from_bytes(header[26:28], "little"),
            int.from_bytes(header[28:30], "little"),
        )
        return info.header_offset + _LOCAL_HEADER_BYTES + name + extra

    def piece(
        self, tensor: TensorRef, span: Span, first: int = 0, is_transposed: bool = False
    ) -> StoredPiece:
        """Where a span lies that begins with element ``first`` of a tensor.

        Raises:
            ValueError: the tensor is scattered over its storage.
        """
        if not tensor.is_contiguous:
            if not tensor.is_transposed or first:
                raise ValueError(
                    f"{self.path} holds a tensor of shape {tensor.shape} with strides "
                    f"{tensor.strides}; save it again with contiguous tensors"
                )
            is_transposed = not is_transposed
        if tensor.storage.key not in self._offsets:
            raise ValueError(f"{self.path} lacks the storage {tensor.storage.key}; it is damaged")
        width = {"F64": 8, "I64": 8, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
        offset = (tensor.offset + first) * width.get(tensor.storage.dtype, 4)
        position = self._start + self._offsets[tensor.storage.key] + offset
        return StoredPiece(span, tensor.storage.dtype, self.path, position, is_transposed)

    def whole(self, tensor: TensorRef) -> StoredPiece:
        """Where all of a tensor lies."""
        return self.piece(tensor, Span.all_of(Region.whole(tensor.shape)))

    def numbers(self, tensor: TensorRef) -> np.ndarray:
        """A small tensor's values."""
        piece = self.whole(tensor)
        with self.path.open("rb") as file:
            file.seek(piece.offset)
            dtype = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1"}
            return np.frombuffer(file.read(piece.num_bytes), dtype[piece.dtype])


class _Window:
    """Part of a file as a file."""

    def __init__(self, raw: Any, start: int, size: int) -> None:
        self._raw, self._start, self._size, self._position = raw, start, size, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, self._size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        count = left if count < 0 else min(count, left)
        self._raw.seek(self._start + self._position)
        data = self._raw.read(count)
        self._position += len(data)
        return data


def flat_names(nested: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested dictionaries."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flat_names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(value: Any) -> Any:
    """A value as JSON can hold it: enums and classes by their names, types by theirs."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Namespace):
        return plain(vars(value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
