# SPDX-License-Identifier: Apache-2.0
"""Words of further launch scripts: ROCm's Megatron-LM, FlagScale, Megatron-LLM, MindSpeed-LLM.

Source: the flags of these projects (behaviour).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import (
    UNSET,
    Field,
    Flag,
    NoEffect,
    Refused,
    given_means,
    in_group,
    on,
    value,
)

_SPECS = "mindspeed_llm.tasks.models.spec."
_HETERO = NoEffect("only read with --enable-hetero, which is refused")


def _untold(*_: Any) -> Any:
    """Read back, the field speaks through the flag of its own name."""
    return UNSET


def _half(asked: bool) -> Any:
    return "bfloat16" if asked else UNSET


def _is_spec(family: str, given: Any) -> bool:
    return bool(given.spec) and given.spec[0] == f"{_SPECS}{family}_spec"


def _whole_vectors(stated: Any, given: Any) -> Any:
    """MiniMax's layers normalize the queries of all heads as one vector."""
    return True if given.qk_layernorm and _is_spec("minimax", given) else stated


def _latents(stated: Any, given: Any) -> Any:
    """PLM's layers normalize the latent vector of keys and values, whatever the flag says."""
    return True if _is_spec("plm", given) else stated


def gated_width(hidden_size: int, multiple: int, factor: float | None) -> int:
    """Return the width of a gated feed-forward block as FlagScale rounds it.

    >>> gated_width(4096, 256, None)
    11008
    """
    width = int(4 * hidden_size * 2 / 3)
    if factor:
        width = int(width * factor)
    return -(-width // multiple) * multiple


def _width(stated: Any, given: Any) -> Any:
    if stated is UNSET and given.multiple_of and given.swiglu and given.hidden_size:
        return gated_width(given.hidden_size, given.multiple_of, given.hidden_dim_multiplier)
    return stated


MORE_RULES: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "model_config.qk_layernorm_full": _whole_vectors,
        "model_config.qk_layernorm": _latents,
        "model_config.ffn_hidden_size": _width,
    }
)
"""Field -> its rule, which gets what flags state about it, and all arguments."""

_NAMES = in_group(
    "names of forks",
    [
        value(
            "--multiple-of",
            int,
            Field("model_config.ffn_hidden_size", by_rule=True),
            small=None,
            help="With --swiglu and without --ffn-hidden-size: 8/3 of --hidden-size, rounded up to "
            "a multiple of this.",
        ),
        value(
            "--hidden-dim-multiplier",
            float,
            Field("model_config.ffn_hidden_size", by_rule=True),
            small=None,
            help="Factor on the width that --multiple-of rounds.",
        ),
        on(
            "--o2-optimizer",
            Field(
                "optimizer_config.exp_avg_dtype",
                means=_half,
                sets={
                    "optimizer_config.exp_avg_sq_dtype": given_means("bfloat16"),
                    "optimizer_config.use_precision_aware_optimizer": given_means(constant=True),
                },
                back=_untold,
            ),
            help="Same as --use-precision-aware-optimizer with --exp-avg-dtype bf16 and "
            "--exp-avg-sq-dtype bf16.",
        ),
        on(
            "--o2-gradient",
            Field("training_config.accumulate_allreduce_grads_in_fp32", by_rule=True),
            dest="grad_reduce_in_bf16",
            help="Same as --grad-reduce-in-bf16.",
        ),
        on(
            "--disable-moe-token-dropping",
            Field("moe_config.moe_expert_capacity_factor", by_rule=True),
            help="With --moe-model-type deepspeed_moe: experts take every token.",
        ),
    ],
)

ROWS: tuple[Flag, ...] = (
    *_NAMES,
    *compact(
        "forks: engine",
        NoEffect("chunks of a pipeline send while others compute, as the schedule has it"),
        """
--combined-1f1b
--combined-1f1b-recipe str
--split-bw
""",
    ),
    *compact(
        "forks: engine",
        NoEffect("tokens travel to their experts by the collectives of the device"),
        """
--moe-enable-mori
--moe-mori-max-tokens-per-rank int
""",
    ),
    *compact(
        "forks: engine",
        NoEffect("gradients lie in one buffer per type in every run"),
        "--use-contiguous-parameters-in-local-ddp",
    ),
    *compact(
        "forks: engine",
        NoEffect("--recompute-granularity says what is recomputed"),
        """
--auto-recompute-device-size int=-1
--auto-recompute-profiling-step int=10
""",
    ),
    *compact(
        "forks: tracking",
        NoEffect("a run's name in the tracker is --wandb-exp-name"),
        """
--wandb-id str
--wandb-mode str
--wandb-log-model
--wandb-resume
--wandb-api-key str
""",
    ),
    *compact(
        "forks: data",
        NoEffect("every host reads the data and writes the checkpoint it needs"),
        "--no-shared-fs switch",
    ),
    *compact(
        "forks: engine",
        NoEffect("runs are trainings"),
        "--training-phase str=pretrain",
    ),
    *compact(
        "refused: forks, data",
        Refused(
            "further tokens of a vocabulary have numbers, not names",
            "use --vocab-extra-ids N, or a tokenizer that has them",
        ),
        "--vocab-extra-ids-list str",
    ),
    *compact(
        "refused: forks, training",
        Refused("hosts of different kinds do not train one model", "use hosts of one kind"),
        "--enable-hetero",
    ),
    *compact(
        "forks: engine",
        _HETERO,
        """
--hetero-mode str
--hetero-device-types str+
--hetero-current-device-type str
--hetero-pipeline-layer-split int+
--hetero-process-meshes int+
--hetero-use-cpu-communication
--hetero-inter-mesh-embedding-layer-impl str
--standalone-embedding-stage-hetero
""",
    ),
)
"""Every one of them."""
