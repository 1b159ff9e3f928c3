# SPDX-License-Identifier: Apache-2.0
"""What models of ``transformers`` answer beside calls: their tables of tokens, their size and type.

Source: the behaviour of ``transformers.PreTrainedModel``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mindspore import Parameter, Tensor, mint
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import device, memory
from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.dtypes import parse_dtype
from mindspeed_ms.formats import names
from mindspeed_ms.formats.find import Found
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.toolkit.given import mapping, shown, whole
from mindspeed_ms.toolkit.mapping.recompute import map_recompute
from mindspeed_ms.toolkit.models import building
from mindspeed_ms.toolkit.models.building import Layout
from mindspeed_ms.toolkit.models.configuration import PretrainedConfig

Self = TypeVar("Self", bound="ModelSurface")
_TABLES = (names.EMBEDDING, names.HEAD)
_HERE = {"cpu": ("cpu",), "ascend": ("npu", "ascend")}
"""Device of the process -> how it may be called."""
_FULL = map_recompute({"recompute": True}).sections["model_config"]


@dataclass(frozen=True, slots=True)
class _Resized:
    """Tables of tokens get another number of rows."""

    old: int
    new: int
    by_mean: bool

    @property
    def draws(self) -> bool:
        """Whether some rows are those of a new model."""
        return self.new > self.old and not self.by_mean

    def table(self, before: Tensor, drawn: Tensor) -> Tensor:
        """[new, h] with the old rows, and new ones as they are drawn or of the old ones' mean."""
        kept = ops.cast(before, mstype.float32)[: min(self.old, self.new)]
        added = ops.cast(drawn, mstype.float32)[self.old :]
        if self.by_mean and self.new > self.old:
            added = mint.broadcast_to(mint.mean(kept, 0, keepdim=True), added.shape)
        rows = mint.cat([kept, added], 0) if self.new > self.old else kept
        return memory.contiguous(ops.cast(rows, drawn.dtype))


class ModelSurface:
    """Methods of a model in memory; see ``PreTrainedModel``, which has the attributes."""

    config: PretrainedConfig
    _dtype: str | None
    _seed: int | None
    _layout: Layout
    _weights: Found | None
    _adapters: Path | None
    _chunks: list[GPTModel]

    main_input_name = "input_ids"

    def build(self) -> list[GPTModel]:
        """The chunks of this rank."""
        raise NotImplementedError

    @property
    def engine_config(self) -> AllConfig:
        """The configuration it was built with."""
        raise NotImplementedError

    # --- tables of tokens -------------------------------------------------------------------------

    def get_input_embeddings(self) -> Cell:
        """The Cell that holds the rows of tokens, [v/p, h] in its ``weight``.

        Raises:
            ValueError: this pipeline stage has none.
        """
        first = self.build()[0]
        if not first.pre_process:
            raise ValueError("the table of tokens is on the first pipeline stage")
        return first.language_model.embedding.word_embeddings

    def get_output_embeddings(self) -> Cell:
        """The Cell of the head: the table of tokens itself where the two are tied.

        Raises:
            ValueError: this pipeline stage has none.
        """
        last = self.build()[-1]
        if not last.post_process:
            raise ValueError("the head is on the last pipeline stage")
        head = getattr(last.language_model, "output_layer", None)
        return self.get_input_embeddings() if head is None else head

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> Cell:
        """Give the vocabulary another number of rows, such as ``len(tokenizer)``.

        Args:
            new_num_tokens: rows; None for as many as there are.
            pad_to_multiple_of: round up to a multiple of it.
            mean_resizing: new rows are the mean of the old ones; otherwise they are drawn as a
                model's first ones. (``transformers`` draws around the mean with a billionth of the
                rows' covariance.)

        Returns:
            The table of tokens.

        Raises:
            ValueError: no number of rows, or the model is shared by several ranks.
        """
        old = self.config.vocab_size
        rows = old if new_num_tokens is None else new_num_tokens
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise ValueError(f"new_num_tokens is {shown(rows)}, but must be a whole number above 0")
        if pad_to_multiple_of is not None:
            whole("pad_to_multiple_of", pad_to_multiple_of, 1)
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        if rows != old:
            config = copy.deepcopy(self.config)
            config.update({"vocab_size": rows})
            self._rebuild(config, self._dtype, _Resized(old, rows, mean_resizing))
        return self.get_input_embeddings()

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """A tied head is the table of tokens itself, always."""

    # --- type, size, place ------------------------------------------------------------------------

    def half(self: Self) -> Self:
        """Weights and computation in fp16."""
        return self._cast("float16")

    def bfloat16(self: Self) -> Self:
        """Weights and computation in bf16."""
        return self._cast("bfloat16")

    def float(self: Self) -> Self:
        """Weights and computation in fp32."""
        return self._cast("float32")

    def to(self: Self, *where: Any, dtype: Any = None) -> Self:
        """Change the type; the device is the process's, and can only be named.

        Raises:
            ValueError: another device, or no type of weights.
        """
        here = _HERE[device.platform()]
        for word in where:
            if isinstance(word, str) and word.lower().partition(":")[0] in here:
                continue
            try:
                dtype = parse_dtype(word)
            except ValueError:
                raise ValueError(
                    f"a model cannot be moved to {shown(word)}: the device of the process, "
                    f"{here[0]} here, is chosen at its start, by init_context or "
                    "MINDSPEED_MS_DEVICE_TARGET; to takes a type"
                ) from None
        return self if dtype is None else self._cast(parse_dtype(dtype))

    def _cast(self: Self, dtype: str) -> Self:
        if dtype != (self._dtype or self.config.dtype):
            self._rebuild(self.config, dtype)
        return self

    @property
    def device(self) -> str:
        """Name of the process's device."""
        return device.platform()

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of this rank's weights; there are no buffers beside them."""
        del return_buffers
        return sum(memory.num_bytes(param) for param in self._parameters().values())

    def can_generate(self) -> bool:
        """Whether ``generate`` works: always."""
        return True

    # --- recomputation ----------------------------------------------------------------------------

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the backward pass computes layers again."""
        return bool(self.config.all_config().model_config.recompute_granularity)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Keep only what enters each layer, and compute the layer again in the backward pass.

        Args:
            gradient_checkpointing_kwargs: ``use_reentrant`` has no meaning here.

        Raises:
            ValueError: other words than that.
        """
        words = gradient_checkpointing_kwargs
        words = {} if words is None else mapping("gradient_checkpointing_kwargs", words)
        others = sorted(set(words) - {"use_reentrant"})
        if others:
            raise ValueError(f"gradient_checkpointing_kwargs has {others[0]!r}; leave it out")
        self._set_recompute(_FULL)

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything again."""
        self._set_recompute(dict.fromkeys(_FULL))

    def _set_recompute(self, fields: Mapping[str, Any]) -> None:
        config = copy.deepcopy(self.config)
        config.run.setdefault("model_config", {}).update(fields)
        self._rebuild(config, self._dtype)

    def _as_built(self, config: PretrainedConfig) -> PretrainedConfig:
        """The configuration with the layers for further tokens that are in memory.

        Weights may lack those that their ``config.json`` counts.
        """
        present = self.engine_config.model_config.mtp_num_layers
        if config.all_config().model_config.mtp_num_layers != present:
            config = copy.deepcopy(config)
            config.run.setdefault("model_config", {})["mtp_num_layers"] = present
        return config

    # --- another model of the same weights --------------------------------------------------------

    def _parameters(self) -> dict[str, Parameter]:
        return {
            name: param for chunk in self.build() for name, param in chunk.parameters_and_names()
        }

    def _rebuild(
        self, config: PretrainedConfig, dtype: str | None, resized: _Resized | None = None
    ) -> None:
        """Become the model of another configuration or type, with the weights of this one.

        Raises:
            ValueError: rows of tokens change, and ranks share them.
        """
        if not self._chunks and resized is None:
            self.config, self._dtype = config, dtype
            return
        old = self._parameters()
        if resized is not None and len(old[_TABLES[0]]) != resized.old:
            raise ValueError(
                "rows of tokens are added to a whole model; do it in one process, save_pretrained, "
                "and open that with several ranks"
            )
        config = self._as_built(config)
        draws = resized is not None and resized.draws
        built = building.build(config, self._layout, dtype, self._seed, None, is_filled=not draws)
        for chunk in built.chunks:
            for name, param in chunk.parameters_and_names():
                if resized is not None and name in _TABLES:
                    memory.copy_(param, resized.table(old[name], param))
                else:
                    memory.copy_(param, memory.in_dtype(old[name], param.dtype))
        self.config, self._dtype = config, dtype
        # What is in memory is no longer what the files say.
        self._weights = self._adapters = None
        self._take(built)

    def _take(self, built: building.Built) -> None:
        """Put built chunks in the place of the present ones."""
        raise NotImplementedError
