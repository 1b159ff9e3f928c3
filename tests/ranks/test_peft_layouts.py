# SPDX-License-Identifier: Apache-2.0
"""Adapters in every layout: the losses of two ranks are those that PEFT and torch have on one."""

import numpy as np
import pytest
from peft_cases import expected, opened, sections

from mindspeed_ms.backend import comm
from mindspeed_ms.config.build import assemble

pytestmark = pytest.mark.ranks

TP, SP = {"tensor_model_parallel_size": 2}, {"sequence_parallel": True}
LAYOUTS = {
    "tp2": ("gpt2_c_attn", TP),
    "tp2-sp": ("gpt2_c_attn", TP | SP),
    "tp2-sp patterns": ("llama_patterns", TP | SP),
    "tp2 magnitudes": ("qwen2_dora", TP),
    "tp2-sp magnitudes": ("qwen2_dora", TP | SP),
    "tp2 of unequal stacks": ("phi3_fused", TP),
    "tp2 of heads": ("neox_fused", TP),
    "tp2-sp of gates": ("glm4_fused", TP | SP),
    "pp2": ("llama_patterns", {"pipeline_model_parallel_size": 2}),
    "pp2 tied": ("gpt2_c_attn", {"pipeline_model_parallel_size": 2}),
    "cp2": ("llama_qv", {"context_parallel_size": 2}),
    "dp2": ("llama_qv", {}),
    "z1": ("llama_qv", {"zero_level": "z1"}),
    "z2": ("llama_patterns", {"zero_level": "z2"}),
    "z3": ("llama_patterns", {"zero_level": "z3"}),
    "z3 magnitudes": ("qwen2_dora", {"zero_level": "z3"}),
    "ep2": ("mixtral_experts", {"expert_model_parallel_size": 2}),
    "ep2 latent": ("deepseek_latent", {"expert_model_parallel_size": 2}),
    "tp2-sp latent": ("deepseek_latent", TP | SP),
    "etp2": ("mixtral_experts", TP | SP | {"expert_tensor_parallel_size": 2}),
}
TP4 = {"tensor_model_parallel_size": 4}
MORE_THAN_GROUPS = {
    "tp4": ("llama_qv", TP4),
    "tp4-sp": ("llama_qv", TP4 | SP),
    "tp4-sp patterns z1": ("llama_patterns", TP4 | SP | {"zero_level": "z1"}),
    "tp4-sp magnitudes": ("qwen2_dora", TP4 | SP),
}
"""Four ranks share two groups of query heads."""


def losses_worker(names):
    """Losses of five steps by layout, on the last rank."""
    found = {}
    for name in names:
        case, layout = (LAYOUTS | MORE_THAN_GROUPS)[name]
        values = sections(case, layout)
        ranks = assemble(values).parallel_config.data_parallel_size(comm.get_world_size())
        values["dataset_config"]["batch_size"] = 2 // ranks
        for grouped in (False, True) if "experts" in case else (None,):
            if grouped is not None:
                values["moe_config"]["moe_grouped_gemm"] = grouped
            losses = []
            with opened(case, values, losses) as run:
                run.train()
            found[name, grouped] = losses
    return found if comm.get_rank() == comm.get_world_size() - 1 else None


def test_losses_do_not_depend_on_the_layout(dist_run):
    found = dist_run(losses_worker, 2, 120, names=list(LAYOUTS))[-1]
    assert len(found) == len(LAYOUTS) + 2
    found |= dist_run(losses_worker, 4, 120, names=list(MORE_THAN_GROUPS))[-1]
    assert len(found) == len(LAYOUTS) + 2 + len(MORE_THAN_GROUPS)
    for (name, _), losses in found.items():
        recorded = expected((LAYOUTS | MORE_THAN_GROUPS)[name][0])["losses"]
        assert np.abs(np.array(losses) - recorded).max() <= 1e-5, name
