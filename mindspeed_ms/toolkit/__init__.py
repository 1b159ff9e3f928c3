"""The high-level front: names as users of MindFormers and ``transformers`` write them.

Every name here is one of ``mindspeed_ms`` too and is loaded when it is first asked for, so that
``import mindspeed_ms`` stays quick and free of MindSpore.
"""

import importlib

EXPORTS: dict[str, str] = {
    "AutoProcessor": "processors",
    "AutoTokenizer": "tokenization.auto",
    "BertTokenizer": "tokenization.classes",
    "CohereTokenizer": "tokenization.classes",
    "GPT2Processor": "processors",
    "GPT2Tokenizer": "tokenization.classes",
    "GPT2TokenizerFast": "tokenization.classes",
    "GPTNeoXTokenizer": "tokenization.classes",
    "GemmaTokenizer": "tokenization.classes",
    "LlamaProcessor": "processors",
    "LlamaTokenizer": "tokenization.classes",
    "LlamaTokenizerFast": "tokenization.classes",
    "PanguAlphaProcessor": "processors",
    "PanguAlphaTokenizer": "tokenization.pangualpha",
    "PreTrainedTokenizerFast": "tokenization.classes",
    "Qwen2Tokenizer": "tokenization.classes",
    "Qwen3_5Tokenizer": "tokenization.classes",
    "RobertaTokenizer": "tokenization.classes",
    "T5Tokenizer": "tokenization.classes",
    "TextProcessor": "processors",
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
