# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of any format, read as catalogs. Needs NumPy only."""
