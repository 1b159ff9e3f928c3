"""Arithmetic of a layout: ranks, stages, schedules, regions of tensors. Needs NumPy only."""
