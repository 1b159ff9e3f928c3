"""Checkpoints of other systems, and of this one, converted, inspected and compared."""
