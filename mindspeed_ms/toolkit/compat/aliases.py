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
_BUILD_CONTEXT = ("build_context", "init_context")
_REGISTER = ("MindFormerConfig", "MindFormerModuleType", "MindFormerRegister")
_PET = ("LoraConfig", "get_pet_model")
_GENERATION = ("GenerationConfig", "TextIteratorStreamer", "TextStreamer")
_PIPELINE = ("TextGenerationPipeline", "pipeline")
_BASES = ("PreTrainedModel", "PreTrainedTokenizerFast", "PretrainedConfig")

MODULES: Mapping[str, tuple[str, ...]] = {
    "mindformers.auto_class": _AUTO,
    "mindformers.core": ("build_parallel_config", *_BUILD_CONTEXT),
    "mindformers.core.callback": (),
    "mindformers.core.callback.callback": (),
    "mindformers.core.context": _BUILD_CONTEXT,
    "mindformers.core.context.build_context": _BUILD_CONTEXT,
    "mindformers.core.lr": (),
    "mindformers.core.optim": (),
    "mindformers.core.parallel_config": ("build_parallel_config",),
    "mindformers.dataset": (),
    "mindformers.generation": _GENERATION,
    "mindformers.generation.generation_config": ("GenerationConfig",),
    "mindformers.generation.streamers": ("TextIteratorStreamer", "TextStreamer"),
    "mindformers.mindformer_book": (),
    "mindformers.model_runner": (),
    "mindformers.models": (*_AUTO, *_BASES, *_GPT2, *_LLAMA, *_PANGU),
    "mindformers.models.auto": _AUTO,
    "mindformers.models.configuration_utils": ("PretrainedConfig",),
    "mindformers.models.gpt2": _GPT2,
    "mindformers.models.gpt2.gpt2": ("GPT2LMHeadModel",),
    "mindformers.models.gpt2.gpt2_config": ("GPT2Config",),
    "mindformers.models.gpt2.gpt2_processor": ("GPT2Processor",),
    "mindformers.models.gpt2.gpt2_tokenizer": ("GPT2Tokenizer",),
    "mindformers.models.llama": _LLAMA,
    "mindformers.models.llama.llama": ("LlamaForCausalLM",),
    "mindformers.models.llama.llama_config": ("LlamaConfig",),
    "mindformers.models.llama.llama_processor": ("LlamaProcessor",),
    "mindformers.models.llama.llama_tokenizer": ("LlamaTokenizer",),
    "mindformers.models.llama.llama_tokenizer_fast": ("LlamaTokenizerFast",),
    "mindformers.models.modeling_utils": ("PreTrainedModel",),
    "mindformers.models.pangualpha": _PANGU,
    "mindformers.models.pangualpha.pangualpha": ("PanguAlphaHeadModel",),
    "mindformers.models.pangualpha.pangualpha_config": ("PanguAlphaConfig",),
    "mindformers.models.pangualpha.pangualpha_processor": ("PanguAlphaProcessor",),
    "mindformers.models.pangualpha.pangualpha_tokenizer": ("PanguAlphaTokenizer",),
    "mindformers.models.tokenization_utils": ("PreTrainedTokenizerFast",),
    "mindformers.models.tokenization_utils_fast": ("PreTrainedTokenizerFast",),
    "mindformers.modules": (),
    "mindformers.modules.transformer": (),
    "mindformers.pet": _PET,
    "mindformers.pet.pet_config": ("LoraConfig",),
    "mindformers.pet.pet_model": ("get_pet_model",),
    "mindformers.pipeline": _PIPELINE,
    "mindformers.pipeline.pipeline": ("pipeline",),
    "mindformers.pipeline.text_generation_pipeline": ("TextGenerationPipeline",),
    "mindformers.tools": ("logger", *_REGISTER),
    "mindformers.tools.logger": ("logger",),
    "mindformers.tools.register": _REGISTER,
    "mindformers.tools.register.config": ("MindFormerConfig",),
    "mindformers.tools.register.register": _REGISTER[1:],
    "mindformers.tools.utils": ("str2bool",),
    "mindformers.trainer": ("Trainer", "TrainingArguments", *_CONTEXT),
    "mindformers.trainer.config_args": _CONTEXT,
    "mindformers.trainer.trainer": ("Trainer",),
    "mindformers.trainer.training_args": ("TrainingArguments",),
    "mindformers.utils": ("str2bool",),
}
"""Module -> names of ours that MindFormers' users import from it."""


COMMANDS: Mapping[str, str] = {
    "mindformers.models.gpt2.convert_weight": "mindspeed_ms.toolkit.convert_weight",
}
"""Module -> module of ours that is a command; ``mindformers/tools`` holds files, run by path."""


_ARGUMENTS = "TrainingArguments say it"
INSTEAD: Mapping[str, str] = {
    "CausalLanguageModelingTrainer": "Trainer does its work",
    "CheckpointMointor": f"{_ARGUMENTS}: save_strategy, save_steps",
    "CheckpointMonitor": f"{_ARGUMENTS}: save_strategy, save_steps",
    "CausalLanguageModelDataset": "give Trainer the path of the data",
    "EvalCallBack": f"{_ARGUMENTS}: eval_strategy, eval_steps",
    "MFLossMonitor": f"the trainer logs each step; {_ARGUMENTS}: logging_steps",
    "MindFormerBook": "AutoConfig.show_support_list() lists the models",
    "ModelRunner": "AutoModelForCausalLM.from_pretrained(folder).generate, or the server",
    "PreTrainedTokenizer": "PreTrainedTokenizerFast is the base of tokenizers here",
    "ProfileMonitor": f"{_ARGUMENTS}: profile",
    "SummaryMonitor": f"{_ARGUMENTS}: report_to='tensorboard'",
    "TransformerOpParallelConfig": "Trainer.set_parallel_config takes the sizes",
    "build_callback": "give Trainer the callbacks",
    "build_dataset": "give Trainer the path of the data, or a MindSpore dataset",
    "build_lr": f"{_ARGUMENTS}: learning_rate, lr_scheduler_type, warmup_steps",
    "build_model": "AutoModel.from_config(config) builds one",
    "build_network": "AutoModel.from_config(config) builds one",
    "build_optim": f"{_ARGUMENTS}: optim, weight_decay",
    "build_tokenizer": "AutoTokenizer.from_pretrained(folder) builds one",
    "get_last_checkpoint": "True means the newest, as in train(resume_training=True)",
    "transform_and_load_checkpoint": "every load reads any layout",
}
"""Name of MindFormers that is not provided -> what does its work."""


def names_of(module: str) -> tuple[str, ...]:
    """Names that a module provides today.

    >>> "register_model" in names_of("mindformers")
    True
    """
    return tuple(name for name in MODULES.get(module, toolkit.__all__) if name in toolkit.EXPORTS)
