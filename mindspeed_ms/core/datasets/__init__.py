# SPDX-License-Identifier: Apache-2.0
"""Megatron's path of ``mindspeed_ms.data``."""
