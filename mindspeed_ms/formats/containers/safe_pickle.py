# SPDX-License-Identifier: Apache-2.0
"""Pickles of torch's, read without torch: nothing in them is executed, and none grows.

The unpickler knows plain data, tensors and types of numbers. Whatever else a pickle names (enums,
classes of other packages, functions) becomes an inert note of what was named. It is the standard
library's reader written in Python, because that is open at the dangerous places: what is called,
what state is set on what, what is hashed, and how much is copied. It takes half a second for a
million opcodes.
"""

from __future__ import annotations

import io
import pickle
import struct
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

STORAGES = {
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
"""Class in torch -> type of the numbers."""
STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}

_DTYPE_NAMES = {
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "float", "half", "double", "long", "float8_e4m3fn", "float8_e5m2", "complex64"),
}

_LARGEST_KEY = 1 << 60
"""Of whole numbers as keys: larger ones can be chosen so that all have one hash."""

_MAX_ITEMS = 500_000
"""That a walk through nested data meets: containers that are there once may be named many times,
tower upon tower."""

_TEXT_PER_ITEM = 16
"""Characters that count as one item."""

_MAX_DEPTH = 200
"""Of data within data."""


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

    @property
    def end(self) -> int:
        """One past the last element in its storage."""
        if 0 in self.shape:
            return self.offset
        steps = zip(self.shape, self.strides, strict=True)
        return self.offset + 1 + sum((extent - 1) * stride for extent, stride in steps)


class Inert:
    """What a pickle named and nobody executed."""

    named = ""
    args: tuple = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __repr__(self) -> str:
        return f"<{self.named}>"

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
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor of shape {str(shape)[:60]} at {str(offset)[:20]}")
    return TensorRef(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *unused: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, kind: Any, args: tuple, *unused: Any) -> Any:
    """A tensor with attributes of its own, such as the fp32 copies of Megatron's 16-bit weights."""
    if function not in (_rebuild_tensor, _rebuild_parameter):
        raise pickle.UnpicklingError("a tensor of an unknown class")
    return function(*args)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "utf-8", "utf8", "ascii"):
        raise pickle.UnpicklingError(f"text in encoding {str(encoding)[:20]!r}")
    return str(text).encode(encoding)


def _size(*args: Any) -> tuple[int, ...]:
    return tuple(args[0]) if args else ()


def _bytearray(*args: Any) -> bytearray:
    if args and not isinstance(args[0], bytes | list | tuple):  # a number would be a size
        raise pickle.UnpicklingError("an array of bytes without its bytes")
    return bytearray(*args)


def _set(*args: Any) -> set:
    for item in args[0] if args else ():
        _check_key(item)
    return set(*args)


def _default_dict(*unused: Any) -> dict:
    return {}


def _dict(*args: Any) -> dict:
    return _mapping({}, *args)


def _ordered_dict(*args: Any) -> OrderedDict:
    return _mapping(OrderedDict(), *args)


def _mapping(target: Any, items: Any = ()) -> Any:
    for key, value in items.items() if isinstance(items, Mapping) else items:
        _check_key(key)
        target[key] = value
    return target


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _default_dict,
    ("argparse", "Namespace"): Namespace,
    ("types", "SimpleNamespace"): Namespace,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _size,
    ("_codecs", "encode"): _encode,
    ("builtins", "set"): _set,
    ("builtins", "frozenset"): _set,
    ("builtins", "dict"): _dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): _bytearray,
}

_CALLABLE = frozenset(map(id, _KNOWN.values()))

_MAPPINGS = (OrderedDict, dict)


def _check_key(key: Any, depth: int = 0) -> None:
    """Hashing what a pickle built must end soon, and must not be what the pickle chose.

    Raises:
        pickle.UnpicklingError: nested too deep, or a number with a chosen hash.
    """
    kind = type(key)
    if kind is str or kind is bytes or key is None or kind is bool or kind is TorchDtype:
        return
    if kind is int and -_LARGEST_KEY < key < _LARGEST_KEY:
        return
    if kind is tuple and depth < 4 and len(key) < 64:
        for item in key:
            _check_key(item, depth + 1)
        return
    if isinstance(key, Inert) or (isinstance(key, type) and issubclass(key, Inert)):
        return  # hashed by identity
    raise pickle.UnpicklingError(f"a key that is {kind.__name__}")


class SafeUnpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Builds plain data, tensor references and inert notes; imports nothing, calls nothing else.

    Args:
        data: the pickle.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._left = len(data) + _MAX_ITEMS

    def load(self) -> Any:
        """The objects.

        Raises:
            ValueError: they are damaged, or cannot be read safely.
        """
        try:
            return super().load()
        except (
            pickle.UnpicklingError,
            LookupError,
            TypeError,
            AttributeError,
            EOFError,
            ValueError,
            OverflowError,
            RecursionError,
            struct.error,
        ) as error:
            what = str(error) or type(error).__name__
            raise ValueError(f"its pickle holds what cannot be read safely: {what}") from None

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for what a pickle names."""
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name in _DTYPE_NAMES:
            return TorchDtype(name)
        return inert_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """A storage."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("an unknown reference")
        kind = getattr(pid[1], "named", "").rpartition(".")[2]
        if kind not in STORAGES:
            raise pickle.UnpicklingError(f"a storage of the unknown type {str(kind)[:40]!r}")
        if type(pid[4]) is not int or pid[4] < 0:
            raise pickle.UnpicklingError("a storage without a size")
        return StorageRef(str(pid[2]), STORAGES[kind], pid[4])

    def _called(self, function: Any, args: Any) -> Any:
        """What a call gives: of what is known, and of inert notes; nothing else is called."""
        if type(args) is not tuple:
            raise pickle.UnpicklingError("a call without arguments")
        if isinstance(function, type) and issubclass(function, Inert) or type(function) is Inert:
            return function(*args)
        if id(function) not in _CALLABLE:
            raise pickle.UnpicklingError(f"a call of {type(function).__name__}")
        # Copies of what is there already: a small file must not make many of a large one.
        self._left -= sum(len(arg) for arg in args if hasattr(arg, "__len__"))
        if self._left < 0:
            raise pickle.UnpicklingError("copies of itself again and again")
        return function(*args)

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._called(self.stack[-1], args)

    def _new_object(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._called(self.stack[-1], args)

    def _new_object_with_names(self) -> None:
        self.stack.pop()
        self._new_object()

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self._called(klass, tuple(args)))

    def _build(self) -> None:
        """Give an object its state: a mapping for namespaces, anything for inert notes."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif type(target) is Namespace:
            if type(state) is not dict or not all(type(key) is str for key in state):
                raise pickle.UnpicklingError("a namespace without names")
            vars(target).update(state)
        elif type(target) not in _MAPPINGS:  # torch notes a version beside its dictionaries
            raise pickle.UnpicklingError(f"state for {type(target).__name__}")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _set_items(self) -> None:
        self._put(self.pop_mark())

    def _put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in _MAPPINGS and not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"items for {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _check_key(key)
            target[key] = value

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put(items)

    def _frozen_set(self) -> None:
        self.append(_set(self.pop_mark()))

    def _add_items(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(_set(items))

    def _refused(self) -> None:
        raise pickle.UnpicklingError("an operation that torch does not write")


def _dispatch() -> dict[int, Callable[[Any], None]]:
    own = SafeUnpickler
    changed = {
        pickle.REDUCE: own._reduce,
        pickle.NEWOBJ: own._new_object,
        pickle.NEWOBJ_EX: own._new_object_with_names,
        pickle.BUILD: own._build,
        pickle.SETITEM: own._set_item,
        pickle.SETITEMS: own._set_items,
        pickle.DICT: own._dict,
        pickle.FROZENSET: own._frozen_set,
        pickle.ADDITEMS: own._add_items,
    }
    # Extensions are code of this process; the others take room before they look for their bytes.
    refused = (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.NEXT_BUFFER)
    changed |= dict.fromkeys((*refused, pickle.READONLY_BUFFER, pickle.PERSID), own._refused)
    return {**pickle._Unpickler.dispatch, **{code[0]: call for code, call in changed.items()}}  # type: ignore[attr-defined]


SafeUnpickler.dispatch = _dispatch()


class Walk:
    """Counts what is met on the way through nested data."""

    def __init__(self) -> None:
        self._left = _MAX_ITEMS

    def meet(self, depth: int = 0, text: str = "") -> None:
        """Count an item.

        Raises:
            ValueError: there are too many, or they are nested too deep.
        """
        self._left -= 1 + len(text) // _TEXT_PER_ITEM
        if self._left < 0 or depth > _MAX_DEPTH:
            raise ValueError(
                f"its data has more than {_MAX_ITEMS} parts, is nested more than {_MAX_DEPTH} "
                "deep, or names the same parts again and again; it is no checkpoint"
            )


def flat_names(nested: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested dictionaries.

    Raises:
        ValueError: they are nested into each other again and again.
    """
    yield from _flat_names(nested, "", Walk(), 0)


def _flat_names(nested: Any, prefix: str, walk: Walk, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        walk.meet(depth, prefix)
        if isinstance(value, Mapping):
            yield from _flat_names(value, f"{prefix}{key}.", walk, depth + 1)
        else:
            yield f"{prefix}{key}", value


def plain(value: Any) -> Any:
    """A value as JSON can hold it: enums and classes by their names, types by theirs.

    Raises:
        ValueError: its parts are nested into each other again and again.
    """
    return _plain(value, Walk(), 0)


def _plain(value: Any, walk: Walk, depth: int) -> Any:
    walk.meet(depth)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, walk, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, walk, depth + 1) for item in value]
    if isinstance(value, Namespace):
        return _plain(vars(value), walk, depth + 1)
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else str(value)
    walk.meet(depth, text)
    return text
