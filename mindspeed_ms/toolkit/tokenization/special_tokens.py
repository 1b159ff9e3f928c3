# SPDX-License-Identifier: Apache-2.0
"""Special tokens of a tokenizer as attributes: ``bos_token``, ``eos_token_id``, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mindspeed_ms.config.section import suggestion
from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.data.tokenizers.assembly import Assembly, Token
from mindspeed_ms.data.tokenizers.tokenizer_folder import EXTRA, OLD_EXTRA, SPECIAL_NAMES
from mindspeed_ms.toolkit.given import mapping, rows, switch


def _name_of(attribute: str) -> tuple[str, bool]:
    """Name of the token that an attribute is about, and whether the attribute is its id.

    >>> _name_of("eos_token_id"), _name_of("additional_special_tokens_ids")
    (('eos_token', True), ('extra_special_tokens', True))
    """
    name = attribute.removesuffix("_ids").removesuffix("_id")
    return (EXTRA if name == OLD_EXTRA else name), name != attribute


class SpecialTokens:
    """Reads and sets special tokens; ``convert_*`` come from the tokenizer.

    Attributes ``X_token`` and ``X_token_id`` exist for each X of bos, eos, unk, sep, pad, cls and
    mask, and for each name of its own that a model has (``image_token``). A token that is not set
    is None.
    """

    _assembly: Assembly

    def __getattr__(self, attribute: str) -> Any:
        name, is_id = _name_of(attribute)
        # Before the constructor has come that far there are no tokens yet.
        assembly: Assembly | None = self.__dict__.get("_assembly")
        if assembly is not None:
            if name in SPECIAL_NAMES or name in assembly.named:
                token = assembly.named.get(name)
                if token is None:
                    return None
                return self.convert_tokens_to_ids(str(token)) if is_id else str(token)
            if name == EXTRA:
                tokens = [str(token) for token in assembly.extra]
                return self.convert_tokens_to_ids(tokens) if is_id else tokens
        raise AttributeError(f"{type(self).__name__} has no attribute {attribute!r}")

    def __setattr__(self, attribute: str, value: Any) -> None:
        name, is_id = _name_of(attribute)
        assembly: Assembly | None = self.__dict__.get("_assembly")
        if assembly is None or not (name in SPECIAL_NAMES or name in (EXTRA, *assembly.named)):
            object.__setattr__(self, attribute, value)
            return
        if is_id and value is not None:
            value = self.convert_ids_to_tokens(value)
        if name == EXTRA:
            assembly.extra = [self._checked(name, token) for token in value or ()]
        else:
            assembly.named[name] = None if value is None else self._checked(name, value)

    @staticmethod
    def _checked(name: str, token: Any) -> Token:
        added_token = optional_libraries.load("tokenizers", "a tokenizer").AddedToken
        if not isinstance(token, str | added_token):
            raise ValueError(f"{name} cannot be {token!r}; give a string or an AddedToken")
        return token

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name -> text of the tokens that have a name."""
        named = self._assembly.named
        order = [*SPECIAL_NAMES, *(name for name in named if name not in SPECIAL_NAMES)]
        return {name: str(named[name]) for name in order if named.get(name) is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """Texts of all special tokens, each once."""
        extra = [str(token) for token in self._assembly.extra]
        return list(dict.fromkeys([*self.special_tokens_map.values(), *extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of all special tokens."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_tokens(
        self, new_tokens: str | Token | Sequence[str | Token], special_tokens: bool = False
    ) -> int:
        """Add tokens behind the vocabulary; those already there are not added again.

        Returns:
            Number of tokens added. The model's embedding needs as many more rows.
        """
        if new_tokens is None:
            return 0
        tokens = list(new_tokens) if isinstance(new_tokens, list | tuple) else [new_tokens]
        added_token = optional_libraries.load("tokenizers", "a tokenizer").AddedToken
        tokens = [token for token in rows("new_tokens", tokens, str | added_token) if token != ""]
        if not tokens:
            return 0
        special_tokens = switch("special_tokens", special_tokens)
        backend = self._assembly.backend
        return backend.add_special_tokens(tokens) if special_tokens else backend.add_tokens(tokens)

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Set special tokens by name and add those that the vocabulary lacks.

        Args:
            special_tokens_dict: name -> token; ``extra_special_tokens`` (or its older name
                ``additional_special_tokens``) -> list of tokens.
            replace_extra_special_tokens: the list takes the place of the present one; else it is
                added to it. Tokens left out keep their ids.

        Returns:
            Number of tokens added.

        Raises:
            ValueError: an unknown name, or something that is no token.
        """
        added_token = optional_libraries.load("tokenizers", "a tokenizer").AddedToken

        def as_special(name: str, token: Any) -> Token:
            token = self._checked(name, token)
            if isinstance(token, str):
                return added_token(token, special=True, normalized=False)
            return token

        tokens: list[Token] = []
        for given, value in mapping("special_tokens_dict", special_tokens_dict).items():
            name = EXTRA if given == OLD_EXTRA else given
            if name == EXTRA:
                if not isinstance(value, list | tuple):
                    raise ValueError(f"{given} is {value!r}; give a list of tokens")
                present = self.extra_special_tokens
                new = [
                    as_special(name, token)
                    for token in value
                    if replace_extra_special_tokens or str(token) not in present
                ]
                kept = [] if replace_extra_special_tokens and new else self._assembly.extra
                self._assembly.extra = [*kept, *new]
                tokens += new
            elif name in SPECIAL_NAMES or name in self._assembly.named:
                setattr(self, name, as_special(name, value))
                tokens.append(self._assembly.named[name])
            else:
                known = (*SPECIAL_NAMES, EXTRA)
                near = suggestion(name, known) or f"; use one of {', '.join(known)}"
                raise ValueError(f"{name!r} is no special token{near}")
        return self.add_tokens(tokens, special_tokens=True)

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for each special token of a sequence that has them, 0 for the others.

        Raises:
            ValueError: ids without special tokens: ask for the mask when encoding.
        """
        if token_ids_1 is not None or not already_has_special_tokens:
            raise ValueError(
                "a mask is made of one sequence that has its special tokens: set "
                "already_has_special_tokens=True, or return_special_tokens_mask=True when encoding"
            )
        special = set(self.all_special_ids)
        return [int(int(number) in special) for number in token_ids_0]
