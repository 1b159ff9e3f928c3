# SPDX-License-Identifier: Apache-2.0
"""Kinds of files that hold tensors, and how they are written safely."""
