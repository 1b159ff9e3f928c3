# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other systems, and of this one, converted, inspected and compared."""
