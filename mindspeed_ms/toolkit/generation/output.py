# SPDX-License-Identifier: Apache-2.0
"""Results of a generation. Legend: n sequences, s tokens, b rows of a step, v vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms.backend import memory
from mindspeed_ms.core.inference.logits_processors import log_softmax
from mindspeed_ms.toolkit.given import shown
from mindspeed_ms.toolkit.named_members import NamedMembers


@dataclass(slots=True)
class GenerateOutput(NamedMembers):
    """What ``return_dict_in_generate=True`` returns; members are keys, too.

    Tensors are on the host. What was not asked for is None.
    """

    sequences: Tensor
    """int32 [n, s]: prompts and new tokens; rows that ended earlier are padded."""
    scores: tuple[Tensor, ...] | None = None
    """With ``output_scores``: of every step fp32 [b, v], as the options changed them. With beams
    logarithms of probabilities."""
    logits: tuple[Tensor, ...] | None = None
    """With ``output_logits``: of every step fp32 [b, v], as the model gave them."""
    logprobs: Tensor | None = None
    """fp32 [n, new tokens]: logarithm of the probability that the model gave to each new token,
    from its logits as they were; 0 where a row is padded."""
    sequences_scores: Tensor | None = None
    """With beams and ``output_scores``: fp32 [n], sums of scores over length ** length_penalty."""
    beam_indices: Tensor | None = None
    """With beams: int32 [n, new tokens], row of the step that chose each token; -1: none."""
    num_drafted: int | None = None
    """With ``use_mtp``: tokens that layers for further tokens proposed."""
    num_accepted: int | None = None
    """With ``use_mtp``: those of them that are in the result."""


def tensor_of(array: NDArray, dtype: type[np.generic] = np.float32) -> Tensor:
    """A tensor of its own memory."""
    return memory.from_numpy(np.array(array, dtype))


def transition_scores(
    sequences: Any, scores: Any, beam_indices: Any = None, normalize_logits: bool = False
) -> NDArray[np.float32]:
    """Score of every new token in the step that chose it, [n, new tokens].

    Args:
        sequences: [n, s].
        scores: of every step [b, v].
        beam_indices: [n, new tokens]; None: row i of a step is sequence i.
        normalize_logits: take logarithms of probabilities first.

    Raises:
        ValueError: arrays of other shapes.

    Source: ``transformers`` ``compute_transition_scores``.
    """
    tokens = _array("sequences", sequences, 2)
    if not isinstance(scores, list | tuple) or not scores:
        raise ValueError(f"scores are {shown(scores)}; give those of every step, as generate does")
    each = [_array("scores of a step", step, 2) for step in scores]
    if any(step.shape != each[0].shape for step in each):
        raise ValueError("scores of steps have several shapes; give those of one call of generate")
    steps = np.stack(each)  # [new, b, v]
    if normalize_logits:
        steps = log_softmax(steps)
    if beam_indices is None:
        rows = np.broadcast_to(np.arange(len(tokens))[:, None], (len(tokens), len(steps)))
    else:
        rows = _array("beam_indices", beam_indices, 2).astype(np.int64)
    count = rows.shape[1]
    fits = len(rows) == len(tokens) and count <= min(tokens.shape[1], len(steps))
    if not fits or rows.max(initial=0) >= steps.shape[1]:
        raise ValueError(
            f"sequences {list(tokens.shape)}, scores of {len(steps)} steps {list(each[0].shape)} "
            f"and rows {list(rows.shape)} do not go together; give those of one call of generate"
        )
    new = tokens[:, tokens.shape[1] - count :]
    if new.size and not 0 <= new.min() <= new.max() < steps.shape[2]:
        raise ValueError(f"sequences hold ids that scores of {steps.shape[2]} tokens do not have")
    found = steps[np.arange(count), np.maximum(rows, 0), new]
    return np.where(rows < 0, np.float32(0.0), found)


def _array(name: str, values: Any, axes: int) -> NDArray:
    try:
        found = memory.as_numpy(values) if isinstance(values, Tensor) else np.asarray(values)
    except ValueError:  # rows of several lengths
        found = np.empty(0, object)
    if found.dtype.kind not in "iufb" or found.ndim != axes:
        raise ValueError(f"{name}: {shown(values)} is no array of numbers with {axes} axes")
    return found.astype(np.int64) if found.dtype.kind in "iub" else found
