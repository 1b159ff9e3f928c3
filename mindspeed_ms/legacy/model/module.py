# SPDX-License-Identifier: Apache-2.0
"""Base of the models that ``pretrain`` trains."""

from __future__ import annotations

from dataclasses import replace

from mindspore import Parameter
from mindspore.nn import Cell

from mindspeed_ms.backend import comm
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import named_parameters, shard_of
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.legacy.model.from_spec import column_linear
from mindspeed_ms.models.gpt import embedding_spec, head_spec
from mindspeed_ms.models.parameter import Init


class Module(Cell):
    """A model that may be one stage of a pipeline and may tie its head to its embedding.

    A subclass sets ``language_model`` and, when the last stage uses the embedding's table, calls
    ``initialize_word_embeddings`` at the end of its constructor.

    Args:
        config: model configuration.
        share_embeddings_and_output_weights: the head uses the embedding table.
    """

    config: TransformerConfig
    """Absent in a module that was made without one."""

    def __init__(
        self,
        config: TransformerConfig | None = None,
        share_embeddings_and_output_weights: bool = True,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if config is not None:
            self.config = config
        self.share_embeddings_and_output_weights = share_embeddings_and_output_weights
        self.shared_weight_name_list: list[str] = []
        """Names of the parameters that another stage holds a copy of; a script may add its own."""
        self.pre_process = parallel_state.is_pipeline_first_stage()
        self.post_process = parallel_state.is_pipeline_last_stage()

    def shared_embedding_or_output_weight(self) -> Parameter:
        """The table that embedding and head share: the embedding's, or this stage's copy of it."""
        if self.pre_process or self._has_embedding_copy:
            return self.language_model.embedding.word_embeddings.weight
        return self.language_model.output_layer.weight

    @property
    def _has_embedding_copy(self) -> bool:
        """Whether the last stage embeds tokens, to predict further ones."""
        return self.post_process and self.config.mtp_num_layers is not None

    def initialize_word_embeddings(self) -> None:
        """Give the last stage its own copy of the embedding's table, if it needs one.

        A tied head does, and so do layers that predict further tokens.

        The copy starts from zeros and gets the embedding's values by a sum over both stages. Its
        gradients are summed alike in every step, so the two stay equal; norms count the embedding
        only.

        Parallelism: collective over the embedding group (first and last stage).

        Raises:
            ValueError: embedding and head are apart, but there is only one pipeline stage.

        Source: Megatron-LM ``MegatronModule.initialize_word_embeddings`` (behaviour).
        """
        if self.pre_process == self.post_process:
            return
        group = parallel_state.get_embedding_group()
        if group.size == 1:
            raise ValueError(
                f"pre_process={self.pre_process} and post_process={self.post_process} with one "
                "pipeline stage; a tied head needs both: set them True or use "
                "untie_embeddings_and_output_weights"
            )
        if self.post_process and not self._has_embedding_copy:
            config = self.config
            table = embedding_spec(config).word
            copy = replace(head_spec(config), dtype=table.dtype, init=Init(value=0.0))
            self.language_model.output_layer = column_linear(copy, config, ProcessGroups.current())
        table = self.shared_embedding_or_output_weight()
        table.shard = replace(shard_of(table), is_tied=True, shared=self.post_process)
        if self.post_process:
            self.shared_weight_name_list += [
                name for name, param in named_parameters(self) if param is table
            ]
        comm.all_reduce(table, group=group)

    def sharded_state_dict(self) -> dict[str, dict[str, object]]:
        """Full shape and partition of every parameter, by name."""
        return {
            name: {
                "shape": shard_of(param).full_shape(param.shape),
                "partition_dim": shard_of(param).partition_dim,
                "partition_stride": shard_of(param).partition_stride,
                "partitions": shard_of(param).partitions,
                "partition_rank": shard_of(param).partition_rank,
            }
            for name, param in named_parameters(self)
        }
