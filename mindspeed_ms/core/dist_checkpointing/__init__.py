# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: saved in shards, loaded into any layout."""

from mindspeed_ms import old_names

__getattr__ = old_names.of(__name__)
