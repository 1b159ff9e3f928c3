# SPDX-License-Identifier: Apache-2.0
"""Adapters of low rank beside frozen layers."""
