# SPDX-License-Identifier: Apache-2.0
"""What is known by name: models, datasets and the classes that belong to a model family.

``register_model`` and ``register_dataset`` are for users' own models and data; the families of the
project fill the same tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from mindspeed_ms.toolkit import messages
from mindspeed_ms.toolkit.given import mapping, shown

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


# --- as MindFormers' users register ---------------------------------------------------------------


class MindFormerModuleType:
    """Kinds of things that ``MindFormerRegister`` knows."""

    MODELS = "models"
    CONFIG = "config"
    TOKENIZER = "tokenizer"
    PROCESSOR = "processor"
    CALLBACK = "callback"
    TOOLS = "tools"


_KINDS = {
    value: Registry[Any](value)
    for name, value in vars(MindFormerModuleType).items()
    if name.isupper()
}


class MindFormerRegister:
    """Classes and functions by kind and name.

    A model is known to ``Trainer(model=name)`` and ``--auto_model=name``, too; ``get_cls`` and its
    siblings find all of them.
    """

    @classmethod
    def register(
        cls, module_type: str = MindFormerModuleType.TOOLS, alias: str | None = None
    ) -> Callable[[T], T]:
        """Return a decorator that makes its class known, under ``alias`` or its own name.

        Raises:
            ValueError: no such kind, or the name is taken.
            TypeError: an alias that is no text, a thing that cannot be called, or a model class
                without ``config_class``.
        """
        kind = _kind(module_type)
        if alias is not None and not isinstance(alias, str):
            raise TypeError(f"alias is {shown(alias)}, but must be a name")

        def add(thing: T) -> T:
            if not callable(thing):
                raise TypeError(f"{shown(thing)} is no class and no function")
            name = alias or str(getattr(thing, "__name__", thing))
            if module_type == MindFormerModuleType.MODELS and isinstance(thing, type):
                if not hasattr(thing, "Config"):
                    thing.Config = getattr(thing, "config_class", None)  # type: ignore[attr-defined]
                register_model(name)(thing)
            return kind.add(name, thing)

        return add

    @classmethod
    def register_cls(
        cls, register_class: T, module_type: str = "tools", alias: str | None = None
    ) -> T:
        """The same, as a call."""
        return cls.register(module_type, alias)(register_class)

    @classmethod
    def is_exist(cls, module_type: str, class_name: str | None = None) -> bool:
        """Whether there is such a thing; without a name, anything of that kind."""
        known = list(_kind(module_type))
        return class_name in known if class_name is not None else bool(known)

    @classmethod
    def get_cls(cls, module_type: str, class_name: str) -> Any:
        """What is registered under a name.

        Raises:
            ValueError: nothing; names the near one, or all.
        """
        return _kind(module_type).get(str(class_name))

    @classmethod
    def get_instance(
        cls, module_type: str = "tools", class_name: str = "", **arguments: Any
    ) -> Any:
        """What a registered class makes of arguments.

        Raises:
            ValueError: nothing is registered under the name.
        """
        return cls.get_cls(module_type, class_name)(**arguments)

    @classmethod
    def get_instance_from_cfg(
        cls, cfg: Mapping[str, Any], module_type: str = "tools", **defaults: Any
    ) -> Any:
        """The same of ``{"type": name, argument: value}``.

        Raises:
            ValueError: there is no ``type``, or nothing is registered under it.
        """
        arguments = {**defaults, **mapping("cfg", cfg)}
        name = arguments.pop("type", None)
        if not name:
            raise ValueError(f"{shown(cfg)} has no type; name what is registered")
        return cls.get_instance(module_type, str(name), **arguments)


def _kind(module_type: Any) -> Registry[Any]:
    if not isinstance(module_type, str) or module_type not in _KINDS:
        near = messages.unknown_name("module_type", shown(module_type).strip("'"), _KINDS)
        raise ValueError(f"{near}; data is made known with register_dataset")
    return _KINDS[module_type]
