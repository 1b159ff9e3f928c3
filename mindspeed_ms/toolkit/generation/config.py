# SPDX-License-Identifier: Apache-2.0
"""Options of text generation: a ``generation_config.json`` with attributes. No MindSpore."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from mindspeed_ms.files.regular_file import read_json
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.given import mapping, rows, shown
from mindspeed_ms.toolkit.messages import unknown_argument

FILE = "generation_config.json"

DEFAULTS: dict[str, Any] = {
    "max_length": 20,
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": None,
    "early_stopping": False,
    "max_time": None,
    "stop_strings": None,
    "do_sample": False,
    "num_beams": 1,
    "use_cache": True,
    "use_mtp": False,
    "prompt_lookup_num_tokens": None,
    "max_matching_ngram_size": 2,
    "num_assistant_tokens": None,
    "assistant_confidence_threshold": None,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "renormalize_logits": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "num_return_sequences": 1,
    "output_scores": False,
    "output_logits": False,
    "return_dict_in_generate": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""What an option is where neither caller nor model says anything, as in ``transformers``."""

DRAFTS = ("use_mtp", "prompt_lookup_num_tokens")
"""Options that say who drafts."""

ALIASES = {"max_decode_length": "max_length"}
"""MindFormers' names."""

_NO_ATTENTION = "fused attention keeps no such tensors"
_ELSEWHERE = "transformers itself has moved it out of the library"
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "decoder_start_token_id": ((), "decoder-only models have no encoder"),
    "output_attentions": ((False,), _NO_ATTENTION),
    "output_hidden_states": ((False,), "hidden states are not kept between layers"),
    "guidance_scale": ((1, 1.0), "there is no second, unguided run of the model"),
    "watermarking_config": ((), "texts are not watermarked"),
    "token_healing": ((False,), "prompts are taken as they are"),
    "assistant_early_exit": ((), "a model drafts with all of its layers"),
    "assistant_ensemble_weight": ((), "drafts change no text"),
    "low_memory": ((False,), _ELSEWHERE),
    "penalty_alpha": ((0, 0.0), _ELSEWHERE),
    "dola_layers": ((), _ELSEWHERE),
    "diversity_penalty": ((0, 0.0), _ELSEWHERE),
    "num_beam_groups": ((1,), _ELSEWHERE),
    "constraints": ((), _ELSEWHERE),
    "force_words_ids": ((), _ELSEWHERE),
    "prefill_chunk_size": ((), "a prompt passes at once"),
}
"""Options of ``transformers`` that must keep a value without effect: those values, and why."""

_SAME_TEXT = frozenset(
    {
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "is_assistant",
        "num_assistant_tokens_schedule",
        "assistant_lookbehind",
        "target_lookbehind",
        "speculation_type",
        "transformers_version",
        "_from_model_config",
        "_commit_hash",
    }
)
"""Options of ``transformers`` that change no text: about memory, or an assistant's."""


class GenerationConfig:
    """How a model generates. An option that is None is the model's, or has its default.

    Args:
        options: names of ``transformers`` (``DEFAULTS``), or MindFormers' ``max_decode_length``.

    Raises:
        TypeError: an unknown name; names the nearest.
        ValueError: a value that is none of the option, or an option that is not served.

    Source: ``transformers`` 5 (names, defaults, rules between options).
    """

    _stated: dict[str, Any]

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(dict.fromkeys(DEFAULTS), _stated={})
        self.update(**options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by copy, at every generation
            raise AttributeError(name)
        raise AttributeError(unknown_argument("GenerationConfig", name, DEFAULTS))

    def __setattr__(self, name: str, value: Any) -> None:
        self.update(**{name: value})

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GenerationConfig):
            return self.to_dict() == other.to_dict()
        return isinstance(other, Mapping) and self.to_dict() == dict(other)

    def __deepcopy__(self, memo: dict[int, Any]) -> GenerationConfig:
        """A copy; made in every generation, so what cannot change is not looked into."""
        result = object.__new__(type(self))
        for name, value in self.__dict__.items():
            result.__dict__[name] = _copied(value, memo)
        return result

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GenerationConfig {json.dumps(self.to_dict(), indent=2, default=str)}"

    def update(self, **options: Any) -> None:
        """Set options.

        Raises:
            TypeError: an unknown name.
            ValueError: see the class.
        """
        for given, value in options.items():
            name = ALIASES.get(given, given)
            if name in REFUSED:
                neutral, reason = REFUSED[name]
                if value is not None and value not in neutral:
                    raise ValueError(f"{name} is {value!r}, but {reason}; leave it out")
            elif name in DEFAULTS:
                _check(name, value)
                self.__dict__[name] = value
            elif name not in _SAME_TEXT:
                known = {*DEFAULTS, *ALIASES, *REFUSED}
                raise TypeError(unknown_argument("generate", given, known))

    def filled(self, *others: GenerationConfig | Mapping[str, Any]) -> GenerationConfig:
        """A copy whose missing options are those of others, the first first, then the defaults."""
        result = copy.deepcopy(self)
        own = result.__dict__
        for other in others:
            source = other if isinstance(other, GenerationConfig) else of_file(other)
            for name in DEFAULTS:
                if own[name] is None:
                    own[name] = _copied(source.__dict__[name], {})
        for name, value in DEFAULTS.items():
            if own[name] is None:
                own[name] = value
        return result

    def set_nothing(self, names: Sequence[str]) -> None:
        """Give options the value without effect, as the caller's None does: ``top_k`` all tokens.

        ``max_length`` stays, since a text has one.

        Args:
            names: of options, or of something else, which is left out.
        """
        for given in rows("names", names, str):
            name = ALIASES.get(given, given)
            if name in DEFAULTS and name != "max_length":
                self.__dict__[name] = 0 if name == "top_k" else DEFAULTS[name]

    def to_dict(self) -> dict[str, Any]:
        """The options that are set, and what else stands in the file they come from."""
        own = {name: self.__dict__[name] for name in DEFAULTS}
        kept = {name: own.get(name, value) for name, value in self._stated.items()}
        return kept | {name: value for name, value in own.items() if value is not None}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """From options by name."""
        return cls(**mapping("options", options))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> GenerationConfig:
        """The options in a folder's ``generation_config.json``.

        Raises:
            OSError: there is no such file.
            ValueError: it is not JSON.
        """
        path = Path(hub.checked_name(folder))
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise OSError(f"{folder} has no {FILE}; nothing is downloaded: give a local folder")
        return of_file(read_json(path))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``generation_config.json`` into a folder, which is made if it is not there."""
        path = Path(hub.checked_name(folder)) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(path, json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")
        return path

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end a text."""
        return _ids(self.eos_token_id)


def _ids(given: Any) -> tuple[int, ...]:
    """No, one, or several ids."""
    if given is None:
        return ()
    return (int(given),) if isinstance(given, Integral) else tuple(int(one) for one in given)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {key: _copied(item, memo) for key, item in value.items()}
    return copy.deepcopy(value, memo)


def of_file(options: Mapping[str, Any]) -> GenerationConfig:
    """Options as a model's files state them: names of other libraries beside them are left out."""
    if not isinstance(options, Mapping):
        raise TypeError(
            f"options of generation are {shown(options)}; give a GenerationConfig or a dictionary"
        )
    known = {ALIASES.get(name, name): value for name, value in options.items()}
    config = GenerationConfig(**{name: known[name] for name in known if name in DEFAULTS})
    config.__dict__["_stated"] = known
    return config


_SWITCHES = frozenset(name for name, value in DEFAULTS.items() if isinstance(value, bool)) - {
    "early_stopping"
}
_COUNTS = {
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_k": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "prompt_lookup_num_tokens": 1,
    "max_matching_ngram_size": 1,
    "num_assistant_tokens": 1,
}
"""Options that are whole numbers, and the smallest of each."""

_NUMBERS = frozenset(
    {name for name, value in DEFAULTS.items() if isinstance(value, float)}
    | {"max_time", "min_p", "top_h", "assistant_confidence_threshold"}
)


def _is_switch(given: Any) -> bool:
    return given in (True, False)


def _is_number(given: Any) -> bool:
    return isinstance(given, Real) and not isinstance(given, bool) and math.isfinite(given)


def _is_id(given: Any) -> bool:
    return isinstance(given, Integral) and not isinstance(given, bool) and abs(int(given)) < 1 << 63


def _is_row(given: Any) -> bool:
    return not isinstance(given, str | bytes | Mapping)


def _are_ids(given: Any) -> bool:
    return _is_row(given) and all(map(_is_id, given))


def _are_ends(given: Any) -> bool:
    return _is_id(given) or _are_ids(given)


def _are_sequences(given: Any) -> bool:
    return _is_row(given) and all(map(_are_ids, given))


def _are_biases(given: Any) -> bool:
    pairs = given.items() if isinstance(given, Mapping) else given
    return _is_row(pairs) and all(_are_ids(ids) and _is_number(bias) for ids, bias in pairs)


def _is_decay(given: Any) -> bool:
    start, factor = given
    return _is_id(start) and _is_number(factor)


def _are_texts(given: Any) -> bool:
    return isinstance(given, str) or (
        _is_row(given) and all(isinstance(text, str) for text in given)
    )


def _is_stop(given: Any) -> bool:
    return given in (True, False, "never")


_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_SWITCHES, (_is_switch, "True or False")),
    **dict.fromkeys(_NUMBERS, (_is_number, "a finite number")),
    **dict.fromkeys(
        ("eos_token_id", "forced_eos_token_id"), (_are_ends, "an id, or a list of ids")
    ),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), (_are_ids, "a list of ids")),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "forced_bos_token_id"), (_is_id, "an id")),
    "bad_words_ids": (_are_sequences, "a list of lists of ids"),
    "sequence_bias": (_are_biases, "pairs of a list of ids and a number"),
    "exponential_decay_length_penalty": (_is_decay, "a whole number and a factor"),
    "stop_strings": (_are_texts, "a text, or a list of texts"),
    "early_stopping": (_is_stop, "True, False or 'never'"),
}
"""What values of an option look like: whether one does, and in words."""


def _fits(name: str, value: Any) -> bool:
    """Whether a value has its option's shape; what cannot be looked into has not."""
    try:
        return bool(_SHAPES[name][0](value))
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return False


def _check(name: str, value: Any) -> None:
    """Refuse what an option cannot be, whatever the others are.

    Raises:
        ValueError: says what was given and what may be.
    """
    if value is None:
        return
    if name in _COUNTS:
        least = _COUNTS[name]
        if not _is_number(value) or int(value) != value or not least <= value < 1 << 63:
            raise ValueError(f"{name} is {shown(value)}; it must be a whole number from {least} up")
    elif not _fits(name, value):
        raise ValueError(f"{name} is {shown(value)}; it must be {_SHAPES[name][1]}")


def check_together(config: GenerationConfig, is_assisted: bool = False) -> None:
    """Refuse options that contradict each other.

    Args:
        config: all options.
        is_assisted: another model drafts.

    Raises:
        ValueError: several sequences of a greedy choice, or more than there are beams; a token
            that is forced and suppressed.
    """
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = _ids(getattr(config, name))
        if forced and set(forced) <= set(config.suppress_tokens or ()):
            raise ValueError(
                f"{name} is {getattr(config, name)}, but suppress_tokens rules it out; leave one "
                "of them out (min_new_tokens puts an end off)"
            )
    wanted, beams = config.num_return_sequences, config.num_beams
    drafts = [name for name in DRAFTS if getattr(config, name)] + ["assistant_model"] * is_assisted
    if len(drafts) > 1:
        raise ValueError(
            f"{' and '.join(drafts)} are given; one of them drafts, leave out the rest"
        )
    if drafts and (beams > 1 or not config.use_cache):
        raise ValueError(
            f"{drafts[0]} is given with num_beams {beams} and use_cache {config.use_cache}; drafts "
            "are for one sequence at a time over a cache: num_beams=1, use_cache=True"
        )
    if wanted > 1 and beams == 1 and not config.do_sample:
        raise ValueError(
            f"num_return_sequences is {wanted}, but a greedy choice gives one; set do_sample=True "
            f"or num_beams={wanted}"
        )
    if beams > 1 and wanted > beams:
        raise ValueError(f"num_return_sequences is {wanted}, more than num_beams ({beams})")
