# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts in float64, token by token: the oracle of the layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Options:
    """What a router and its losses do; names as in the configuration, without ``moe_``."""

    topk: int = 2
    score: str = "softmax"
    pre_softmax: bool = False
    scaling: float | None = None
    num_groups: int | None = None
    group_topk: int | None = None
    bias: np.ndarray | None = None
    capacity_factor: float | None = None
    policy: str = "probs"
    aux: float = 0.0
    seq_aux: float = 0.0
    z: float | None = None


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def choose(scores, options):
    """Experts of one token, best first."""
    scores = scores if options.bias is None else scores + options.bias
    allowed = range(len(scores))
    if options.num_groups:
        size = len(scores) // options.num_groups
        groups = [range(g * size, (g + 1) * size) for g in range(options.num_groups)]
        per_group = options.topk // options.group_topk
        worth = [
            sum(sorted((scores[e] for e in group), reverse=True)[:per_group]) for group in groups
        ]
        best = sorted(range(len(groups)), key=lambda g: -worth[g])[: options.group_topk]
        allowed = [e for g in best for e in groups[g]]
    return sorted(allowed, key=lambda e: -scores[e])[: options.topk]


def route(logits, options):
    """[{expert: weight}] for every token, with what is over capacity left out."""
    routes = []
    for row in logits:
        if options.score == "sigmoid":
            scores = sigmoid(row)
        else:
            scores = softmax(row) if options.pre_softmax else row
        chosen = choose(scores, options)
        weights = np.array([scores[e] for e in chosen])
        if options.score == "sigmoid":
            weights = weights / weights.sum() if options.topk > 1 else weights
        elif not options.pre_softmax:
            weights = softmax(weights)
        routes.append(dict(zip(chosen, weights * (options.scaling or 1.0), strict=True)))
    if options.capacity_factor is None:
        return routes
    experts = logits.shape[1]
    capacity = math.ceil(len(logits) * options.topk / experts * options.capacity_factor)
    for expert in range(experts):
        wanting = [t for t, weights in enumerate(routes) if expert in weights]
        if options.policy == "probs":
            wanting.sort(key=lambda t: -routes[t][expert])
        for token in wanting[capacity:]:
            del routes[token][expert]
    return routes


def losses(logits, batch_size, options):
    """Sum of the losses that are attached, and each of them without its weight."""
    tokens, experts = logits.shape
    probs = np.array(
        [
            softmax(row) if options.score == "softmax" else sigmoid(row) / sigmoid(row).sum()
            for row in logits
        ]
    )
    chosen = [sorted(range(experts), key=lambda e: -row[e])[: options.topk] for row in probs]

    def balance(which):
        counts = np.zeros(experts)
        for token in which:
            for expert in chosen[token]:
                counts[expert] += 1
        share = counts / (len(which) * options.topk)
        return experts * (share * probs[which].mean(axis=0)).sum()

    found = {
        "aux": balance(range(tokens)),
        "seq_aux": np.mean([balance(range(b, tokens, batch_size)) for b in range(batch_size)]),
        "z": np.mean([np.log(np.exp(row).sum()) ** 2 for row in logits]),
    }
    total = options.aux * found["aux"] + options.seq_aux * found["seq_aux"]
    return total + (options.z or 0.0) * found["z"], found


def swiglu(x):
    gate, up = np.split(x, 2)
    return gate * sigmoid(gate) * up


def layer(x, router, fc1, fc2, options):
    """[s, b, h] -> [s, b, h]; ``fc1`` [E, 2f, h] and ``fc2`` [E, h, f]."""
    flat = x.reshape(-1, x.shape[-1])
    routes = route(flat @ router.T, options)
    out = np.zeros_like(flat)
    for token, weights in enumerate(routes):
        for expert, weight in weights.items():
            out[token] += weight * (fc2[expert] @ swiglu(fc1[expert] @ flat[token]))
    return out.reshape(x.shape)
