# SPDX-License-Identifier: Apache-2.0
"""A run from its configuration to its last checkpoint; it knows no flag and raises exceptions."""
