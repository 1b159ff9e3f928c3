# SPDX-License-Identifier: Apache-2.0
"""The families there are. A new one is a folder beside this file and a line here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.coercion import suggestion
from mindspeed_ms.models.families import (
    arcee,
    bloom,
    cohere,
    cwm,
    deepseek_v2,
    deepseek_v3,
    deepseek_v32,
    dots1,
    ernie4_5,
    ernie4_5_moe,
    exaone4,
    exaone_moe,
    falcon,
    flex_olmo,
    gemma2,
    gemma3,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    glm_moe_dsa,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gpt_pangu,
    gptj,
    granite,
    granitemoe,
    helium,
    hyperclovax,
    internlm2,
    internlm3,
    jais2,
    kimi_k2,
    llama,
    minimax_m2,
    ministral,
    mistral,
    mixtral,
    mpt,
    nemotron,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    opt,
    persimmon,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    qwen3_next,
    seed_oss,
    smollm3,
    solar_open,
    stablelm,
    starcoder2,
)
from mindspeed_ms.models.families.family import Family

FAMILIES: tuple[Family, ...] = (
    gpt2.FAMILY,
    llama.FAMILY,
    qwen2.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    qwen3.FAMILY,
    gpt_pangu.FAMILY,
    qwen2_moe.FAMILY,
    qwen3_moe.FAMILY,
    gemma2.GEMMA,
    gemma2.FAMILY,
    gemma3.FAMILY,
    phi3.FAMILY,
    gpt_neox.FAMILY,
    olmo2.FAMILY,
    olmoe.FAMILY,
    granite.FAMILY,
    glm4.GLM,
    glm4.FAMILY,
    deepseek_v2.FAMILY,
    deepseek_v3.FAMILY,
    deepseek_v32.FAMILY,
    gpt_oss.FAMILY,
    seed_oss.FAMILY,
    smollm3.FAMILY,
    starcoder2.FAMILY,
    exaone4.FAMILY,
    ministral.FAMILY,
    ernie4_5.FAMILY,
    arcee.FAMILY,
    nemotron.FAMILY,
    glm4_moe.FAMILY,
    kimi_k2.FAMILY,
    dots1.FAMILY,
    olmo3.FAMILY,
    helium.FAMILY,
    bloom.FAMILY,
    stablelm.FAMILY,
    falcon.FAMILY,
    cohere.COHERE,
    cohere.FAMILY,
    phi.FAMILY,
    opt.FAMILY,
    internlm2.FAMILY,
    olmo.FAMILY,
    mpt.FAMILY,
    qwen3_next.FAMILY,
    minimax_m2.FAMILY,
    glm4_moe_lite.FAMILY,
    glm_moe_dsa.FAMILY,
    ernie4_5_moe.FAMILY,
    granitemoe.FAMILY,
    granitemoe.SHARED,
    exaone_moe.FAMILY,
    solar_open.FAMILY,
    gptj.FAMILY,
    gptj.CODEGEN,
    gpt_neo.FAMILY,
    gpt_bigcode.FAMILY,
    persimmon.FAMILY,
    internlm3.FAMILY,
    jais2.FAMILY,
    cwm.FAMILY,
    flex_olmo.FAMILY,
    hyperclovax.FAMILY,
)
"""In the order in which a model is tried to be written as one of them."""

BY_MODEL_TYPE: Mapping[str, Family] = MappingProxyType(
    {family.model_type: family for family in FAMILIES}
)


def family_of_type(model_type: object) -> Family:
    """The family of a ``config.json``'s ``model_type``.

    Raises:
        ValueError: there is none.
    """
    family = BY_MODEL_TYPE.get(str(model_type))
    if family is None:
        raise ValueError(
            f"model_type is {model_type!r}; models of type {', '.join(BY_MODEL_TYPE)} are "
            f"supported{suggestion(str(model_type)[:100], BY_MODEL_TYPE)}"
        )
    return family


def family_of(config: AllConfig) -> Family:
    """The first family that holds a model.

    Raises:
        ValueError: none does; the message says what the nearest one cannot hold.
    """
    return next(families_of(config))


def families_of(config: AllConfig) -> Iterator[Family]:
    """Every family that holds a model: one that is computed alike may have several forms of files.

    Raises:
        ValueError: none does; the message says what the nearest one cannot hold.
    """
    nearest: tuple[Family, list[str]] | None = None
    is_held = False
    for family in FAMILIES:
        misfits = family.misfits(config)
        if not misfits:
            is_held = True
            yield family
        elif nearest is None or len(misfits) < len(nearest[1]):
            nearest = family, misfits
    if is_held:
        return
    assert nearest is not None, "there are families"
    raise ValueError(
        f"no family of Hugging Face models holds this model; {nearest[0].model_type}, the nearest, "
        f"has another {'; '.join(nearest[1][:4])}: convert to another format"
    )
