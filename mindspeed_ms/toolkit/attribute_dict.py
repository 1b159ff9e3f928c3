# SPDX-License-Identifier: Apache-2.0
"""Dicts whose keys are attributes too, as scripts read them."""

from __future__ import annotations

from typing import Any


class AttributeDict(dict[str, Any]):
    """A dict; an attribute that is no key is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value
