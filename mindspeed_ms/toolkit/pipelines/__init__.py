# SPDX-License-Identifier: Apache-2.0
"""A task, a model and a tokenizer as one call."""
