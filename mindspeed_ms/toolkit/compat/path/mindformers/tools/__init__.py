# SPDX-License-Identifier: Apache-2.0
"""Tools of MindFormers, by their names there."""

from mindspeed_ms.toolkit.compat import guard as _guard

__getattr__ = _guard.getter(__name__)
