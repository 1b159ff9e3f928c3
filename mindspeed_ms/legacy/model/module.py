"""Base of the models that ``pretrain`` trains."""

from __future__ import annotations

from mindspore import Parameter
from mindspore.nn import Cell

from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.config import TransformerConfig
from mindspeed_ms.core.parameter import named_parameters, shard_of


class Module(Cell):
    """A model that may be one stage of a pipeline and may tie its head to its embedding.

    A subclass sets ``language_model`` and, when the head is tied, calls
    ``initialize_word_embeddings`` at the end of its constructor.

    Args:
        config: model configuration.
        share_embeddings_and_output_weights: the head uses the embedding table.
    """

    def __init__(
        self,
        config: TransformerConfig | None = None,
        share_embeddings_and_output_weights: bool = True,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.share_embeddings_and_output_weights = share_embeddings_and_output_weights
        self.pre_process = parallel_state.is_pipeline_first_stage()
        self.post_process = parallel_state.is_pipeline_last_stage()

    def shared_embedding_or_output_weight(self) -> Parameter:
        """The table that embedding and head share."""
        return self.language_model.embedding.word_embeddings.weight

    def initialize_word_embeddings(self) -> None:
        """Check that head and embedding can be tied on this rank."""
        if not (self.pre_process and self.post_process):
            raise ValueError(
                "a tied head needs embedding and head on one pipeline stage; use "
                "untie_embeddings_and_output_weights=True or one stage"
            )

    @property
    def shared_weight_name_list(self) -> list[str]:
        """Names of the parameters that another stage holds a copy of."""
        return [name for name, param in named_parameters(self) if shard_of(param).shared]

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
