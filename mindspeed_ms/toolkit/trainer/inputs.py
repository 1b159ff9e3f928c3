# SPDX-License-Identifier: Apache-2.0
"""What a trainer and its methods are given, checked and brought into one form."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from mindspeed_ms.toolkit.given import mapping
from mindspeed_ms.toolkit.messages import unknown_argument
from mindspeed_ms.toolkit.peft import LoraConfig
from mindspeed_ms.toolkit.trainer.arguments import TrainingArguments
from mindspeed_ms.toolkit.trainer.file_settings import stands_first

TASKS = ("text_generation", "general")
_AFTER = ("train_dataset", "eval_dataset", "pet_method", "model_name", "tokenizer", "callbacks")
_OF_GUIDES = ("task", "model", "args", *_AFTER, "lora_config", "chat_template")
_OF_MINDFORMERS = ("args", "task", "model", *_OF_GUIDES[3:])
_OF_TRANSFORMERS = (
    *("model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class"),
    *("model_init", "compute_loss_func", "compute_metrics", "callbacks", "optimizers"),
)
"""Arguments without names, in their order: the guides', or as the first ones tell."""
_REFUSED = {
    "compute_loss_func": "the loss is the cross entropy of the model",
    "compute_metrics": "evaluation is of loss and perplexity",
    "data_collator": "give rows, texts or conversations, which are put together here",
    "image_processor": "there are no images",
    "audio_processor": "there is no sound",
    "model_init": "give model",
    "optimizer_cls_and_kwargs": "TrainingArguments say optim and its settings",
    "optimizers": "TrainingArguments say optim and its settings",
    "preprocess_logits_for_metrics": "evaluation is of loss and perplexity",
    "wrapper": "there is one training step",
}
"""Arguments of other trainers of this name that ask for what is not there."""


def in_any_order(init: Callable[..., None]) -> Callable[..., None]:
    """A trainer's ``__init__`` whose arguments without names stand in one of three orders."""

    @functools.wraps(init)
    def named_init(self: object, *given: Any, **named: Any) -> None:
        init(self, **_named(given, named))

    return named_init


def _named(given: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their names.

    Raises:
        TypeError: too many of them, or one by its place and by its name.
    """
    order = _OF_GUIDES
    if given and (stands_first(given[0]) or given[1:2] and _is_task(given[1])):
        order = _OF_MINDFORMERS
    elif given and given[0] is not None and not isinstance(given[0], str):
        order = _OF_TRANSFORMERS
    if len(given) > len(order):
        raise TypeError(f"Trainer takes {len(order)} arguments without names; give their names")
    found = dict(zip(order, given, strict=False))
    if twice := sorted(found.keys() & named.keys()):
        raise TypeError(
            f"Trainer has {twice[0]} twice: arguments without names are {', '.join(found)}, as "
            "their first one tells; give the others their names"
        )
    return found | dict(named)


def _is_task(given: Any) -> bool:
    return isinstance(given, str) and given in TASKS


def arguments(given: Any) -> TrainingArguments:
    """Training arguments of an object, a mapping, or the defaults.

    Raises:
        TypeError: it is none of these.
    """
    if given is None:
        return TrainingArguments()
    if isinstance(given, Mapping):
        return TrainingArguments(**mapping("args", given))
    if isinstance(given, TrainingArguments):
        return given
    if hasattr(given, "to_dict"):
        raise TypeError(
            "args are those of transformers; make mindspeed_ms.TrainingArguments of them: the "
            "names are the same"
        )
    raise TypeError(f"args is {given!r}; give TrainingArguments")


def refuse(others: Mapping[str, Any]) -> None:
    """Refuse what other trainers take.

    Raises:
        TypeError: an argument that none has.
        ValueError: one that asks for what is not there.
    """
    for name, value in others.items():
        if name not in _REFUSED:
            known = (*_REFUSED, "processing_class", "eval_callbacks", "tokenizer", "callbacks")
            raise TypeError(unknown_argument("Trainer", name, known))
        if value is not None and value != (None, None):
            raise ValueError(f"Trainer {name}: {_REFUSED[name]}")


def listed(callbacks: Any) -> list[Any]:
    """One callback, or several, as a list."""
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]


def resume_from(args: TrainingArguments, *given: str | bool | None) -> str | None:
    """The folder of the run to go on with; None: a new one begins.

    ``given`` are the arguments of the call from the strongest on; the last one is the checkpoint,
    which only tells where.
    """
    *asked, checkpoint = given
    for value in (*asked, args.resume_from_checkpoint, args.resume_training):
        if isinstance(value, str | os.PathLike) and os.fspath(value):
            return os.fspath(value)
        if value is True:
            named = isinstance(checkpoint, str) and checkpoint
            return str(checkpoint if named else args.output_dir or "./output")
        if value is False:
            return None
    return None


def lora_fields(config: Any) -> dict[str, Any]:
    """Fields of the section ``lora_config``."""
    if config is None:
        return {}
    if isinstance(config, Mapping):
        is_of_peft = bool({"r", "exclude_modules", "target_parameters"} & config.keys())
        return LoraConfig(**config).section() if is_of_peft else dict(config)
    if hasattr(config, "section"):
        return dict(config.section())
    raise TypeError(f"lora_config is {config!r}; give LoraConfig, or a mapping of its fields")


def texts_of(given: Any) -> list[str]:
    """Texts to go on with: one, several, or the lines of a file.

    Raises:
        ValueError: there are none.
        TypeError: it is no text.
    """
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        if isinstance(given, os.PathLike) or (name.endswith(".txt") and os.path.isfile(name)):
            with open(name, encoding="utf-8") as stream:
                given = [line.rstrip("\n") for line in stream if line.strip()]
        else:
            given = [name] if name else []
    if given is not None and not isinstance(given, list | tuple):
        raise TypeError(f"input_data is {given!r:.60}; give a text or several")
    texts = list(given or ())
    if not texts:
        raise ValueError("there is nothing to go on with; give input_data, a text or several")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"input_data holds {text!r}; give texts")
    return texts
