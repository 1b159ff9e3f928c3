# SPDX-License-Identifier: Apache-2.0
"""The packages of the user guide's import paths: model and data."""
