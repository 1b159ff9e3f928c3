# SPDX-License-Identifier: Apache-2.0
"""Families of models by name; each is a folder with its table and the sizes it comes in."""
