# SPDX-License-Identifier: Apache-2.0
"""Models by name: configurations, Auto classes, and models called as in ``transformers``."""
