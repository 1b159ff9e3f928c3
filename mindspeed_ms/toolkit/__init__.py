# SPDX-License-Identifier: Apache-2.0
"""The high-level front: names as users of MindFormers and ``transformers`` write them.

Every name here is one of ``mindspeed_ms`` too and is loaded when it is first asked for, so that
``import mindspeed_ms`` stays quick and free of MindSpore.
"""

import importlib

EXPORTS: dict[str, str] = {
    "AutoConfig": "models.auto_config",
    "AutoModel": "models.auto",
    "AutoModelForCausalLM": "models.auto",
    "AutoProcessor": "processors",
    "AutoTokenizer": "tokenization.auto",
    "BertTokenizer": "tokenization.classes",
    "CohereTokenizer": "tokenization.classes",
    "ContextConfig": "context",
    "EarlyStoppingCallback": "trainer.callbacks",
    "GPT2Config": "models.configuration",
    "GPT2LMHeadModel": "models.modeling",
    "GPT2Processor": "processors",
    "GPT2Tokenizer": "tokenization.classes",
    "GPT2TokenizerFast": "tokenization.classes",
    "GPTNeoXTokenizer": "tokenization.classes",
    "GemmaTokenizer": "tokenization.classes",
    "GenerationConfig": "generation.config",
    "LlamaConfig": "models.configuration",
    "LlamaForCausalLM": "models.modeling",
    "LlamaProcessor": "processors",
    "LlamaTokenizer": "tokenization.classes",
    "LlamaTokenizerFast": "tokenization.classes",
    "LoraConfig": "peft",
    "MindFormerConfig": "mindformer_config",
    "MindFormerModuleType": "registry",
    "MindFormerRegister": "registry",
    "MistralConfig": "models.configuration",
    "MistralForCausalLM": "models.modeling",
    "MixtralConfig": "models.configuration",
    "MixtralForCausalLM": "models.modeling",
    "PanguAlphaConfig": "models.configuration",
    "PanguAlphaHeadModel": "models.modeling",
    "PanguAlphaProcessor": "processors",
    "PanguAlphaTokenizer": "tokenization.pangualpha",
    "ParallelContextConfig": "context",
    "PeftModel": "peft",
    "PreTrainedModel": "models.modeling",
    "PreTrainedTokenizerFast": "tokenization.classes",
    "PretrainedConfig": "models.configuration",
    "Qwen2Config": "models.configuration",
    "Qwen2ForCausalLM": "models.modeling",
    "Qwen2Tokenizer": "tokenization.classes",
    "Qwen3Config": "models.configuration",
    "Qwen3ForCausalLM": "models.modeling",
    "Qwen3_5Tokenizer": "tokenization.classes",
    "RobertaTokenizer": "tokenization.classes",
    "T5Tokenizer": "tokenization.classes",
    "TextGenerationPipeline": "pipelines.text_generation",
    "TextIteratorStreamer": "generation.streamers",
    "TextProcessor": "processors",
    "TextStreamer": "generation.streamers",
    "Trainer": "trainer.trainer",
    "TrainerCallback": "trainer.callbacks",
    "TrainerControl": "trainer.callbacks",
    "TrainerState": "trainer.callbacks",
    "TrainingArguments": "trainer.arguments",
    "init_context": "context",
    "build_context": "context",
    "build_parallel_config": "context",
    "get_pet_model": "peft",
    "logger": "script_tools",
    "merge_adapter": "peft",
    "pipeline": "pipelines.text_generation",
    "save_adapter": "peft",
    "str2bool": "script_tools",
    "unmerge_adapter": "peft",
    "register_dataset": "registry",
    "register_model": "registry",
}
"""Public name -> module of this room that defines it."""

__all__ = sorted(EXPORTS)


def __getattr__(name: str) -> object:
    """Load the module that defines a public name (PEP 562)."""
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
