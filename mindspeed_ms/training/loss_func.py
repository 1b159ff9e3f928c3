# SPDX-License-Identifier: Apache-2.0
"""Losses under the import path of the user guide."""

from mindspeed_ms.legacy.model.loss import LossWithMask

__all__ = ["LossWithMask"]
