"""Names of a GPT model's parameters that formats treat differently."""

from __future__ import annotations

EMBEDDING = "language_model.embedding.word_embeddings.weight"
"""The table of token embeddings; a tied head uses it."""

HEAD = "language_model.output_layer.weight"
"""An untied head."""
