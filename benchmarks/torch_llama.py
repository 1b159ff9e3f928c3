# SPDX-License-Identifier: Apache-2.0
"""A plain Llama in torch, the other side of ``vs_torch.py``. Legend: b batch, s sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def rotary_tables(sequence: int, dim: int) -> tuple[Tensor, Tensor]:
    """(cos, sin) [s, dim] of rotary position embeddings with base 10000."""
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2).float() / dim)
    angles = torch.outer(torch.arange(sequence).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [b, heads, s, dim] by position."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Block(nn.Module):
    """Attention and gated MLP, each behind an RMS norm and added to its input."""

    def __init__(self, hidden: int, ffn: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.heads, self.key_heads, self.dim = heads, key_heads, hidden // heads
        self.norm1, self.norm2 = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.qkv = nn.Linear(hidden, (heads + 2 * key_heads) * self.dim, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.up = nn.Linear(hidden, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[b, s, hidden] -> the same."""
        b, s, _ = x.shape
        sizes = [self.heads, self.key_heads, self.key_heads]
        qkv = self.qkv(self.norm1(x)).view(b, s, sum(sizes), self.dim).transpose(1, 2)
        q, k, v = qkv.split(sizes, dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, -1))
        gate, up = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class Llama(nn.Module):
    """Embedding, blocks, norm, head; not tied."""

    def __init__(
        self,
        layers: int,
        hidden: int,
        ffn: int,
        heads: int,
        key_heads: int,
        vocabulary: int,
        sequence: int,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.blocks = nn.ModuleList(Block(hidden, ffn, heads, key_heads) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden)
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        cos, sin = rotary_tables(sequence, hidden // heads)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, tokens: Tensor) -> Tensor:
        """[b, s] -> logits [b, s, vocabulary]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))
