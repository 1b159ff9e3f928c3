# SPDX-License-Identifier: Apache-2.0
"""Command-line tools; their functions can be imported by tests."""
