# SPDX-License-Identifier: Apache-2.0
"""Which names of MindFormers are which of ours. The only place that says so.

A name is provided under ``mindformers`` as soon as ``mindspeed_ms`` has it; the modules below are
where scripts look for it besides.
"""

from __future__ import annotations

from collections.abc import Mapping

from mindspeed_ms import toolkit

_GPT2 = ("GPT2Config", "GPT2LMHeadModel", "GPT2Processor", "GPT2Tokenizer")
_LLAMA = ("LlamaConfig", "LlamaForCausalLM", "LlamaProcessor", "LlamaTokenizer")
_PANGU = (
    "PanguAlphaConfig",
    "PanguAlphaHeadModel",
    "PanguAlphaProcessor",
    "PanguAlphaTokenizer",
)
_AUTO = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoTokenizer")
_CONTEXT = ("ContextConfig", "ParallelContextConfig")

MODULES: Mapping[str, tuple[str, ...]] = {
    "mindformers.auto_class": _AUTO,
    "mindformers.core": ("init_context",),
    "mindformers.core.context": ("init_context",),
    "mindformers.core.context.build_context": ("init_context",),
    "mindformers.generation": ("GenerationConfig", "TextStreamer"),
    "mindformers.models": (*_AUTO, *_GPT2, *_LLAMA, *_PANGU),
    "mindformers.models.auto": _AUTO,
    "mindformers.models.gpt2": _GPT2,
    "mindformers.models.gpt2.gpt2": ("GPT2LMHeadModel",),
    "mindformers.models.gpt2.gpt2_config": ("GPT2Config",),
    "mindformers.models.gpt2.gpt2_processor": ("GPT2Processor",),
    "mindformers.models.gpt2.gpt2_tokenizer": ("GPT2Tokenizer",),
    "mindformers.models.llama": _LLAMA,
    "mindformers.models.pangualpha": _PANGU,
    "mindformers.pet": ("LoraConfig",),
    "mindformers.trainer": ("Trainer", "TrainingArguments", *_CONTEXT),
    "mindformers.trainer.config_args": _CONTEXT,
    "mindformers.trainer.trainer": ("Trainer",),
    "mindformers.trainer.training_args": ("TrainingArguments",),
}
"""Module -> names of ours that MindFormers' users import from it."""


COMMANDS: Mapping[str, str] = {
    "mindformers.models.gpt2.convert_weight": "mindspeed_ms.toolkit.convert_weight",
}
"""Module -> module of ours that is a command; ``mindformers/tools`` holds files, run by path."""


def names_of(module: str) -> tuple[str, ...]:
    """Names that a module provides today.

    >>> "register_model" in names_of("mindformers")
    True
    """
    return tuple(name for name in MODULES.get(module, toolkit.__all__) if name in toolkit.EXPORTS)
