# SPDX-License-Identifier: Apache-2.0
"""Models as users of ``transformers`` and MindFormers call them, over the engine's GPT.

Legend: b batch, s sequence, v vocabulary (true rows, without padding).
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell
from numpy.typing import ArrayLike

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.dtypes import parse_dtype
from mindspeed_ms.core import parallel_state, run_state
from mindspeed_ms.core.run_state import RunState
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.files.whole import temporary_folder
from mindspeed_ms.formats import companions
from mindspeed_ms.formats.find import Found
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.generation.config import GenerationConfig, of_file
from mindspeed_ms.toolkit.generation.mixin import GenerationMixin
from mindspeed_ms.toolkit.given import mapping, shown, switch
from mindspeed_ms.toolkit.models import batches, building, calls, configuration, stages
from mindspeed_ms.toolkit.models.building import Layout
from mindspeed_ms.toolkit.models.calls import CausalLMOutput
from mindspeed_ms.toolkit.models.configuration import PretrainedConfig
from mindspeed_ms.toolkit.models.hub_upload import push_to_hub as upload
from mindspeed_ms.toolkit.models.hub_upload import repository
from mindspeed_ms.toolkit.models.locate import find_weights
from mindspeed_ms.toolkit.models.presets import CLASS_DEFAULTS
from mindspeed_ms.toolkit.models.saving import save_model
from mindspeed_ms.toolkit.models.surface import ModelSurface

Model = TypeVar("Model", bound="PreTrainedModel")


class PreTrainedModel(ModelSurface, GenerationMixin, Cell):
    """A decoder-only language model with its head.

    It is built when it is first needed, so that its size can be asked for, or a ``Trainer`` can
    build it in a layout of its own, without weights in memory.

    Args:
        config: the configuration.
        layout: ``tensor_model_parallel_size``, ``pipeline_model_parallel_size``,
            ``expert_model_parallel_size`` (short: ``tensor_parallel``, ...), ``sequence_parallel``.
            Not needed inside a run, or where groups exist.
        dtype: type of weights and of computation; None for the configuration's.
        seed: of the initial weights; None for ``mindspore.set_seed``'s.

    Attributes:
        config: the configuration.
        generation_config: how it generates; see ``GenerationConfig``.
        name_or_path: where its weights came from.
        bytes_read: of a checkpoint, by this rank.
        origin: folder with the files of the hub's model that it comes from, None if unknown.

    Parallelism: calls are collective over the ranks of the layout.
    """

    Config: ClassVar[type[PretrainedConfig]] = PretrainedConfig
    config: PretrainedConfig
    generation_config: GenerationConfig

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        dtype: Any = None,
        seed: int | None = None,
        **layout: Any,
    ) -> None:
        super().__init__()
        if not isinstance(config, PretrainedConfig):
            raise TypeError(
                f"{type(self).__name__} takes a configuration such as {self.Config.__name__}(...), "
                f"not {shown(config)}; from_pretrained takes names and folders"
            )
        self.config = config
        self.generation_config = of_model(config)
        self.name_or_path = config.name_or_path
        self._layout = Layout.of(layout, type(self).__name__)
        self._dtype, self._seed = None if dtype is None else parse_dtype(dtype), seed
        self._weights: Found | None = None
        self._adapters: Path | None = None
        self.origin: Path | None = None
        self.bytes_read = 0
        self._chunks: list[GPTModel] = []
        self._state: RunState | None = None
        self._engine_config: AllConfig | None = None
        if config.checkpoint_name_or_path:
            self._weights = find_weights(config.checkpoint_name_or_path)

    # --- files ------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: type[Model],
        name_or_path: str | os.PathLike[str],
        *,
        config: PretrainedConfig | None = None,
        dtype: Any = None,
        subfolder: str | None = None,
        **options: Any,
    ) -> Model:
        """A model with its weights, from a checkpoint of any format and layout.

        With one rank the weights are read now; with several when the model is first used, so that
        each rank reads its part only.

        Args:
            name_or_path: folder, file, or a name; see ``locate``.
            config: the configuration, where the checkpoint does not describe its model.
            dtype: type of weights and of computation; None or "auto" for the checkpoint's.
            subfolder: folder below it that is meant.
            options: layout, or values of the configuration to change.

        Raises:
            OSError: nothing is found; says where was looked.
            ValueError: the checkpoint is incomplete, or does not fit.
        """
        name_or_path = hub.below(name_or_path, subfolder)
        dtype = options.pop("torch_dtype", dtype)
        options = hub.without_remote(options)
        if config is None:
            config = cls.Config.from_pretrained(name_or_path)
        found = find_weights(name_or_path)
        layout = {key: options.pop(key) for key in list(options) if key in building.LAYOUT_WORDS}
        config = config.changed(options)
        is_given = dtype is not None and dtype != "auto"
        model = cls(config, dtype=dtype if is_given else None, **layout)
        model._weights, model.name_or_path = found, os.fspath(name_or_path)
        model.origin = companions.origin_of(found.folder)
        stated = companions.generation_defaults(found.folder)
        if stated:
            model.generation_config = of_file({**config.generation, **stated})
        if comm.get_world_size() == 1:
            model.build()
        return model

    @classmethod
    def from_config(cls: type[Model], config: PretrainedConfig, **options: Any) -> Model:
        """A model with random weights."""
        return cls(config, **options)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        save_name: str | None = None,
        *,
        format: str = "huggingface",  # noqa: A002 - the word users write
        max_shard_size: int | str = "5GB",
        push_to_hub: bool = False,
        **hub_options: Any,
    ) -> Path:
        """Write the model; ``from_pretrained`` opens it, and ``transformers`` its own form.

        Args:
            save_directory: the folder.
            save_name: with ``format="mindspore"``, stem of the ``.yaml`` and ``.ckpt``.
            format: ``huggingface``, ``mindspore``, ``megatron`` or ``mindspeed_ms``.
            max_shard_size: of one file; bytes, or a text such as ``"5GB"``.
            push_to_hub: upload the folder too; ``repo_id``, ``token``, ``private`` say where.
            hub_options: see ``push_to_hub``.

        Raises:
            ValueError: the format cannot hold the model, or adapters are not merged into it.

        Parallelism: collective over the world; the first rank writes.
        """
        return save_model(
            self,
            Path(hub.checked_name(save_directory)),
            save_name=save_name,
            form=format,
            max_shard_size=max_shard_size,
            push_to_hub=hub_options if push_to_hub else None,
        )

    @classmethod
    def show_support_list(cls) -> list[str]:
        """Print, and return, the names of sizes of this kind of model."""
        return cls.Config.show_support_list()

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write the model into a temporary folder and upload that; returns the commit's address.

        Args:
            repo_id: ``owner/name``.
            options: of ``hub_upload.push_to_hub``.
        """
        repository(repo_id)
        with temporary_folder("upload") as folder:
            self.save_pretrained(folder)
            return upload(folder, repo_id, **options)

    # --- parts ------------------------------------------------------------------------------------

    def build(self) -> list[GPTModel]:
        """The chunks of this rank: one, or one per virtual stage; built at the first call."""
        if not self._chunks:
            built = building.build(
                self.config,
                self._layout,
                self._dtype,
                self._seed,
                self._weights,
                self._adapters,
            )
            self._take(built)
        return self._chunks

    def _take(self, built: building.Built) -> None:
        self.bytes_read = built.bytes_read
        self.adopt(built.chunks, built.state, built.config)

    @property
    def is_built(self) -> bool:
        """Whether its weights are in memory."""
        return bool(self._chunks)

    @property
    def weights_path(self) -> str:
        """Where its weights are read from when it is built; empty: they are drawn at random."""
        return "" if self._weights is None else os.fspath(self._weights.folder)

    def with_adapters(
        self: Model, section: Mapping[str, Any], adapters: Path | None = None
    ) -> Model:
        """A model of the same weights with adapters; this one is left as it is.

        Args:
            section: fields of the section ``lora_config``.
            adapters: folder of PEFT's files to read them from, now; None for fresh ones.

        Raises:
            ValueError: the weights are in memory alone, or the adapters do not fit.
        """
        if self.is_built and self._weights is None:
            raise ValueError(
                "the model was made in memory, so a second one with adapters cannot read its "
                "weights; save_pretrained it, and adapt what from_pretrained opens"
            )
        config = copy.deepcopy(self.config)
        config.run.setdefault("lora_config", {}).update(mapping("section", section))
        adapted = type(self)(config, dtype=self._dtype, seed=self._seed)
        adapted._layout, adapted._weights = self._layout, self._weights
        adapted.name_or_path, adapted._adapters = self.name_or_path, adapters
        adapted.generation_config, adapted.origin = self.generation_config, self.origin
        if adapters is not None:
            adapted.build()  # a trainer reads one place, or takes what is in memory
        return adapted

    def adopt(self, chunks: list[GPTModel], state: RunState, config: AllConfig) -> None:
        """Take over what a run has made of this model; what was in memory before is left.

        Args:
            chunks: of this rank.
            state: groups and random streams of the run.
            config: of the run.
        """
        self._chunks, self._state, self._engine_config = list(chunks), state, config
        if len(chunks) == 1:
            self.network_cell = chunks[0]
        for chunk in chunks:
            chunk.set_train(self.training)

    @property
    def network(self) -> GPTModel:
        """The engine's model, or its part on this rank."""
        return self.build()[0]

    @property
    def engine_config(self) -> AllConfig:
        """The engine's configuration that it was built with."""
        self.build()
        assert self._engine_config is not None, "a built model has one"
        return self._engine_config

    @contextmanager
    def active(self) -> Iterator[None]:
        """Context in which the model's groups and random streams are the current ones."""
        self.build()
        inside = parallel_state.model_parallel_is_initialized()
        state = run_state.current() if inside else self._state
        assert state is not None, "a built model has one"
        with run_state.activated(state), autograd.in_dynamic_graph():
            yield

    @property
    def dtype(self) -> mstype.Type:
        """Type of the weights."""
        return memory.dtype_of(self._dtype or self.config.dtype)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Elements of the whole model on all ranks, exactly; nothing is built for it.

        Layers for further tokens are left out; see the configuration's ``num_parameters``.

        Args:
            only_trainable: those that are trained, of a model on one rank.
            exclude_embeddings: without the tables of tokens and positions.
        """
        config = self._as_built(self.config) if self._chunks else self.config
        spec = gpt_spec(config.all_config().model_config)
        only_trainable = switch("only_trainable", only_trainable)
        exclude_embeddings = switch("exclude_embeddings", exclude_embeddings)
        count = spec.num_next_token_parameters
        if only_trainable and self._chunks and parallel_state_is_single(self.engine_config):
            count = sum(int(np.prod(param.shape)) for param in self.trainable_params())
        if not exclude_embeddings:
            return count
        return count - sum(math.prod(table.shape) for table in spec.embedding.parameters())

    def parameters_and_names(
        self, name_prefix: str = "", expand: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Parameters of this rank, by the names they have in checkpoints."""
        for chunk in self.build():
            yield from chunk.parameters_and_names(name_prefix, expand)

    def set_train(self, mode: bool = True) -> PreTrainedModel:
        """Switch dropout, and the loss from rows of tokens, on or off."""
        mode = switch("mode", mode)
        if mode:
            self.build()
        super().set_train(mode)
        for chunk in self._chunks:
            chunk.set_train(mode)
        return self

    def train(self, mode: bool = True) -> PreTrainedModel:
        """``set_train``, by the name of ``transformers``."""
        return self.set_train(mode)

    def eval(self) -> PreTrainedModel:
        """``set_train(False)``."""
        return self.set_train(False)

    def set_input_tensor(self, input_tensor: Tensor | None) -> None:
        """Activations from the previous pipeline stage, for the engine's schedules."""
        self.network.set_input_tensor(input_tensor)

    # --- calls ------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; see ``construct``."""
        with self.active():
            return super().__call__(*args, **kwargs)

    def construct(
        self,
        input_ids: ArrayLike | Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        labels: ArrayLike | Tensor | None = None,
        return_dict: bool = False,
        **options: Any,
    ) -> Tensor | CausalLMOutput:
        """Logits fp32 [b, s, v], or with labels the loss.

        In training, rows of one token more than ``config.seq_length`` are inputs and labels in
        one, as in MindFormers, and give the loss.

        Args:
            input_ids: ids [b, s], array or tensor.
            attention_mask: [b, s], 0 for tokens that are not seen; None: all are.
            position_ids: [b, s]; None: 0, 1, 2, ...
            labels: ids [b, s] at the place of the token itself (they are shifted here), -100 for
                tokens without loss; the loss is the mean over the others.
            return_dict: return a ``CausalLMOutput``.
            options: those of ``transformers`` that a ``CausalLMOutput`` answers: ``use_cache``,
                ``past_key_values``, ``output_hidden_states``, and ``logits_to_keep``, the number of
                last tokens whose logits are wanted (0: all). The engine's own protocol has
                ``tokens`` and ``loss_mask``, and labels as they are.

        Raises:
            ValueError: inputs of a wrong shape, or ids without a row in the vocabulary.
        """
        if options.get("inputs_embeds") is not None:
            raise ValueError("inputs_embeds is given, but a model here reads ids; give input_ids")
        if input_ids is None and options.get("tokens") is None:
            raise ValueError("there are no input_ids; give ids [b, s]")
        if "tokens" in options or input_ids is None:
            return self.network(
                options.pop("tokens", None), position_ids, attention_mask, labels=labels, **options
            )
        asked = calls.Asked.of(options, type(self).__name__)
        if asked.is_cached:
            return self._go_on(input_ids, attention_mask, labels, asked)
        ids = batches.as_array(input_ids, "input_ids")
        targets = None if labels is None else batches.shifted(labels, ids.shape)
        if labels is None and self.training and ids.shape[1] == self._row_length():
            ids, targets = ids[:, :-1], batches.Targets(ids[:, 1:])
        batch = batches.prepare(ids, attention_mask, position_ids, self.engine_config)
        return self._forward(batch, targets, return_dict or asked.needs_names, asked)

    def _go_on(
        self, input_ids: Any, attention_mask: Any, labels: Any, asked: calls.Asked
    ) -> CausalLMOutput:
        """Logits of tokens behind those of a cache, without a gradient."""
        if labels is not None or self.training or asked.output_hidden_states:
            raise ValueError(
                "use_cache and past_key_values are for choosing tokens; call model.eval(), and "
                "give no labels and no output_hidden_states"
            )
        rows = len(batches.as_array(input_ids, "input_ids"))
        cache = asked.past_key_values or calls.Cache(self.inference_engine(rows), rows)
        logits = calls.cached(cache, input_ids, attention_mask)
        kept = memory.from_numpy(np.ascontiguousarray(logits[:, -asked.logits_to_keep :]))
        return CausalLMOutput(None, kept, cache)

    def _row_length(self) -> int:
        return self.engine_config.model_config.seq_length + 1

    def _forward(
        self,
        batch: batches.Batch,
        targets: batches.Targets | None,
        return_dict: bool,
        asked: calls.Asked,
    ) -> Tensor | CausalLMOutput:
        length, extra = batch.length, batch.tokens.shape[1] - batch.length
        if targets is not None and not return_dict:
            ids, mask = targets.tensors(extra)
            return stages.forward(
                self.build(),
                self.engine_config,
                batch,
                labels=ids,
                loss_mask=mask,
            )
        with calls.watched(self.build(), asked.output_hidden_states) as states:
            parts = stages.forward(self.build(), self.engine_config, batch)
        loss = None
        if targets is not None:
            ids, mask = targets.tensors(extra)
            loss = self.network.loss(ops.cast(parts, mstype.float32), ids, mask)
        logits = mappings.gather_from_tensor_model_parallel_region(parts)
        rows = self.engine_config.dataset_config.vocab_size or logits.shape[-1]
        first = max(length - asked.logits_to_keep, 0) if asked.logits_to_keep else 0
        if logits.shape[1:] != (length - first, rows):
            logits = memory.contiguous(logits[:, first:length, :rows])
        logits = ops.cast(logits, mstype.float32)
        if not return_dict:
            return logits
        seen = calls.by_batch(states, self.engine_config, length) if states else None
        return CausalLMOutput(loss, logits, None, seen)


def parallel_state_is_single(config: AllConfig) -> bool:
    """Whether one rank holds the whole model."""
    parallel = config.parallel_config
    return (
        parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size == 1
        and (parallel.expert_model_parallel_size or 1) == 1
    )


def of_model(config: PretrainedConfig) -> GenerationConfig:
    """How a model generates whose folder has no ``generation_config.json``."""
    named = {**CLASS_DEFAULTS.get(config.model_type, {}), **config.values}
    tokens = {name: named.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return of_file({**tokens, **config.generation})


class GPT2LMHeadModel(PreTrainedModel):
    """GPT-2."""

    Config = configuration.GPT2Config


class LlamaForCausalLM(PreTrainedModel):
    """Llama 1, 2 and 3."""

    Config = configuration.LlamaConfig


class Qwen2ForCausalLM(PreTrainedModel):
    """Qwen 2 and 2.5."""

    Config = configuration.Qwen2Config


class Qwen3ForCausalLM(PreTrainedModel):
    """Qwen 3."""

    Config = configuration.Qwen3Config


class MistralForCausalLM(PreTrainedModel):
    """Mistral."""

    Config = configuration.MistralConfig


class MixtralForCausalLM(PreTrainedModel):
    """Mixtral."""

    Config = configuration.MixtralConfig


class PanguAlphaHeadModel(PreTrainedModel):
    """PanGu-alpha, whose last layer has a learned query for every position."""

    Config = configuration.PanguAlphaConfig
