# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of a layout: ranks, stages, schedules, regions of tensors. Needs NumPy only."""
