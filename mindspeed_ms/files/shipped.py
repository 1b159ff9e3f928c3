# SPDX-License-Identifier: Apache-2.0
"""Where the configurations and the small corpus lie that come with the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "shipped"
"""Filled when a wheel is built."""

SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
"""Holds ``configs`` and ``data``: a folder of the installed package, or the source tree."""

CONFIGS = SHIPPED / "configs"
