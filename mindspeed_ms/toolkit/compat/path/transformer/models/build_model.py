# SPDX-License-Identifier: Apache-2.0
"""Where the toolkit builds models: one of one's own is registered instead of edited in."""

from mindspeed_ms.toolkit import register_model

__all__ = ["register_model"]
