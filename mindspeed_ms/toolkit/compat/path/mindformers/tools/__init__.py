# SPDX-License-Identifier: Apache-2.0
"""Tools of MindFormers, by their names there."""
