# SPDX-License-Identifier: Apache-2.0
"""What is known by name: models, datasets and the classes that belong to a model family.

``register_model`` and ``register_dataset`` are for users' own models and data; the families of the
project fill the same tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from mindspeed_ms.toolkit import messages

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of thing.

    Args:
        kind: what the things are, for messages: ``model``, ``dataset``, ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def add(self, name: str, thing: T) -> T:
        """Make a thing known.

        Raises:
            ValueError: the name stands for something else.
        """
        present = self._things.setdefault(name, thing)
        if present is not thing and _origin(present) != _origin(thing):
            raise ValueError(
                f"{self.kind} {name!r} is registered already by {_origin(present)}; "
                f"choose another name"
            )
        # The same definition again: its module was loaded anew, as notebooks do.
        self._things[name] = thing
        return thing

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that makes its class or function known under ``name``."""
        return lambda thing: self.add(name, thing)

    def get(self, name: str) -> T:
        """The thing of that name.

        Raises:
            ValueError: there is none; names the near one, or all.
        """
        if name not in self._things:
            raise ValueError(messages.unknown_name(self.kind, name, self._things))
        return self._things[name]


def _origin(thing: object) -> str:
    module = getattr(thing, "__module__", type(thing).__module__)
    return f"{module}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


MODELS: Registry[type] = Registry("model")
"""Model families: name -> model class, whose ``Config`` is its configuration class."""

DATASETS: Registry[Callable[..., Any]] = Registry("dataset")
"""Name -> ``f(options, split)`` that returns a dataset."""

TOKENIZERS: Registry[Any] = Registry("tokenizer")
"""Class name, as in ``tokenizer_config.json`` -> tokenizer class."""

PROCESSORS: Registry[Any] = Registry("processor")
"""Model family -> processor class."""


def register_model(name: str) -> Callable[[type], type]:
    """Make a model class known, so that ``model=name`` and ``--auto_model=name`` mean it.

    The class has an attribute ``Config``, the class of its configuration.

    Raises:
        ValueError: the name is taken.
        TypeError: the class has no ``Config``.
    """

    def add(model: type) -> type:
        if not isinstance(getattr(model, "Config", None), type):
            raise TypeError(
                f"{model!r} has no class attribute Config; set it to the class of the model's "
                "configuration"
            )
        return MODELS.add(name, model)

    return add


def register_dataset(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make ``f(options, split) -> dataset`` known, so that ``--auto_dataset=name`` means it.

    Raises:
        ValueError: the name is taken.
    """
    return DATASETS.register(name)
