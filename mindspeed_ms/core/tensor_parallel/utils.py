# SPDX-License-Identifier: Apache-2.0
"""Small arithmetic of splitting things over a group."""

from __future__ import annotations


def divide(numerator: int, denominator: int, what: str = "size") -> int:
    """Exact quotient.

    Raises:
        ValueError: there is a remainder.
    """
    if numerator % denominator:
        lower = numerator // denominator * denominator
        raise ValueError(
            f"{what} is {numerator}; it must be divisible by {denominator}: use "
            f"{lower or denominator} or {lower + denominator}"
        )
    return numerator // denominator


class VocabUtility:
    """Which rows of a vocabulary-sized tensor a rank holds."""

    @staticmethod
    def vocab_range_from_global_vocab_size(
        global_vocab_size: int, rank: int, world_size: int
    ) -> tuple[int, int]:
        """(first, one past last) row of a rank."""
        rows = divide(global_vocab_size, world_size, "vocabulary size")
        return rank * rows, (rank + 1) * rows


def refuse_unsupported(
    *,
    keep_master_weight_for_test: bool = False,
    embedding_activation_buffer: object = None,
    grad_output_buffer: object = None,
    tp_comm_buffer_name: str | None = None,
) -> None:
    """Arguments of the layers' public signatures that have no meaning here keep their default.

    Raises:
        ValueError: one that does not.
    """
    if keep_master_weight_for_test:
        raise ValueError(
            "keep_master_weight_for_test is True; the full weight is not kept: gather the shards "
            "with ShardSpec.join, or leave it False"
        )
    if embedding_activation_buffer is not None or grad_output_buffer is not None:
        raise ValueError(
            "embedding_activation_buffer and grad_output_buffer defer the weight gradient of the "
            "head; that is not done here: leave them None"
        )
    if tp_comm_buffer_name is not None:
        raise ValueError(
            f"tp_comm_buffer_name is {tp_comm_buffer_name!r}; it names a TransformerEngine buffer: "
            "leave it None"
        )
