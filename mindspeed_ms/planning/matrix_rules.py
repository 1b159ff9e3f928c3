# SPDX-License-Identifier: Apache-2.0
"""What update rules of matrices compute and keep beside what every element has."""

from __future__ import annotations

from mindspeed_ms.config import OptimizerConfig
from mindspeed_ms.config.optimizer_config import SOAP_STATES
from mindspeed_ms.models import ParamSpec


def whole_bytes(rule: OptimizerConfig, one: ParamSpec) -> int:
    """States of a whole matrix, which every rank keeps that owns a part of it."""
    if rule.algorithm != "soap" or not rule.has_matrix_rule(len(one.shape), one.is_vocabulary):
        return 0
    rows, columns = one.shape
    shapes = rows * columns, rows * rows, columns * columns
    return 4 * sum(shapes[kind] for kind in SOAP_STATES.values())


def matrix_operations(rule: OptimizerConfig, one: ParamSpec, local: tuple[int, ...]) -> float:
    """Operations of a step on a matrix, by every rank that owns a part of it.

    Counted are products and decompositions: those of ``core/optimizer/soap`` in each step and at
    each refinement of its bases, and those of Muon's Newton-Schulz steps.

    Args:
        rule: of matrices.
        one: the whole parameter.
        local: its shape on a tensor parallel rank.
    """
    if not rule.has_matrix_rule(len(one.shape), one.is_vocabulary):
        return 0.0
    if rule.algorithm == "soap":
        rows, columns = one.shape
        mixed, cubes = rows * columns * (rows + columns), rows**3 + columns**3
        each = 10 * mixed + 2 * cubes if rule.soap_use_kl_shampoo else 6 * mixed
        return each + (4 * mixed + 20 / 3 * cubes) / rule.soap_precondition_frequency
    short, long = sorted(one.shape if rule.muon_tp_mode == "duplicated" else local)
    return rule.muon_num_ns_steps * (4.0 * short * short * long + 2.0 * short**3)
