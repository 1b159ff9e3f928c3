# SPDX-License-Identifier: Apache-2.0
"""Data of the high-level room: from what users hold, to samples and micro-batches of a run."""
