# SPDX-License-Identifier: Apache-2.0
"""The names of MindFormers that mindspeed_ms provides; see ``mindspeed_ms.toolkit.compat``."""

from mindspeed_ms.toolkit.compat import guard as _guard

_provided = _guard.provide(__name__)
__version__ = _provided.version
__getattr__ = _provided.get
__dir__ = _provided.names
__all__ = _provided.names()  # noqa: PLE0605  (from mindformers import *)
