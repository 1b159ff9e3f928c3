# SPDX-License-Identifier: Apache-2.0
"""``torchrun`` for MindSpore: torch's launcher commands translated to ``msrun``."""
