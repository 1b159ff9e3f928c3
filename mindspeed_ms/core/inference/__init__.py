# SPDX-License-Identifier: Apache-2.0
"""Text generation below any front: a cache of keys and values, steps of a model, choices of tokens.

``engine`` runs a model's chunks over a cache, a step for all rows at a time; ``sampling`` and
``logits_processors`` choose tokens from its logits. ``context`` is what the layers are handed as
``inference_params``.
"""
