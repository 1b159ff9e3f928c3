# SPDX-License-Identifier: Apache-2.0
"""Loaders under the path of Megatron's legacy package."""
