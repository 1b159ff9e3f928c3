# SPDX-License-Identifier: Apache-2.0
"""How weights start, where it is said by an initializer of MindSpore."""

from __future__ import annotations

from typing import Any


def taken_initializers(model: dict[str, Any]) -> dict[str, Any]:
    """Take ``init_method`` and ``bias_init`` out of a section, as far as its fields can say them.

    They are objects, classes or names of MindSpore's, which is not needed to read them; what no
    field can say stays in the section.

    Returns:
        The fields that say the same.
    """
    fields: dict[str, Any] = {}
    init = model.get("init_method")
    kind = _kind_of(init)
    if kind == "normal" and getattr(init, "mean", 0.0) == 0.0:
        del model["init_method"]
        fields["init_method_std"] = getattr(init, "sigma", None)
    elif kind == "xavieruniform" and getattr(init, "gain", 1.0) == 1.0:
        del model["init_method"]
        fields["init_method_xavier_uniform"] = True
    if _kind_of(model.get("bias_init")) in ("zero", "zeros", "0", "0.0"):
        del model["bias_init"]
    return fields


def _kind_of(initializer: object) -> str:
    """Its name in lower case; a number is its own."""
    if isinstance(initializer, str | int | float):
        return str(initializer).lower().replace("_", "")
    cls = initializer if isinstance(initializer, type) else type(initializer)
    return cls.__name__.lower()
