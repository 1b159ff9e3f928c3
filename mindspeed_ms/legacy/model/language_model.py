"""Embedding, transformer and head of a language model.

Legend: s sequence, b batch, h hidden, v vocabulary, p tensor parallel ranks.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.context_parallel import context_parallel, share_of_draws
from mindspeed_ms.core.parameter import create_parameter
from mindspeed_ms.core.tensor_parallel import (
    ColumnParallelLinear,
    VocabParallelEmbedding,
    get_rng_tracker,
    mappings,
)
from mindspeed_ms.core.tensor_parallel.random import counting_draws
from mindspeed_ms.legacy.model.attention import AttentionMask
from mindspeed_ms.legacy.model.enums import AttnMaskType, LayerType, ModelType
from mindspeed_ms.legacy.model.initialization import normal, normal_after_default, zeros
from mindspeed_ms.legacy.model.multi_latent_attention import latent_rotary
from mindspeed_ms.legacy.model.multi_token_prediction import MultiTokenPredictionBlock
from mindspeed_ms.legacy.model.rotary_pos_embedding import RotaryEmbedding
from mindspeed_ms.legacy.model.transformer import ParallelTransformer, residual_dropout_stream

LEARNED_POSITIONS = ("absolute", "learned_absolute")


class PositionEmbedding(Cell):
    """Table of learned positions, whole on every rank."""

    def __init__(self, max_sequence_length: int, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = create_parameter(
            (max_sequence_length, config.hidden_size),
            normal_after_default(config.init_method_std),
            dtype=config.params_dtype,
        )

    def construct(self, position_ids: Tensor) -> Tensor:
        """Position ids of any shape [...] -> [..., h]."""
        return ops.embedding(self.weight, position_ids)


class Embedding(Cell):
    """Token embedding plus, if the model learns them, position and token type embeddings.

    Args:
        hidden_size: h.
        vocab_size: padded vocabulary size over all ranks.
        max_sequence_length: rows of the position table.
        embedding_dropout_prob: dropout on the sum.
        config: model configuration.
        num_tokentypes: rows of the token type table, 0 for none.
        is_copy: the tables belong to another stage; they start from zeros and are filled later.

    Shapes:
        ids and position ids [b, s] -> [s, b, h]; with sequence parallelism [s/p, b, h].
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        max_sequence_length: int,
        embedding_dropout_prob: float,
        config: TransformerConfig,
        num_tokentypes: int = 0,
        *,
        is_copy: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        std = config.embedding_init_method_std or config.init_method_std
        self.dropout = embedding_dropout_prob
        self.context = context_parallel(config.parallel_config)
        self.residual_dtype = memory.dtype_of(config.residual_dtype)
        self.sequence_parallel = config.parallel_config.sequence_parallel
        self.has_positions = config.position_embedding_type in LEARNED_POSITIONS
        # Only a plain lookup can leave the table already split along the sequence.
        scatter_in_lookup = self.sequence_parallel and not self.has_positions and not num_tokentypes
        self.word_embeddings = VocabParallelEmbedding(
            vocab_size,
            hidden_size,
            init_method=zeros if is_copy else normal(std),
            reduce_scatter_embeddings=scatter_in_lookup,
            config=config,
            param_init_dtype=config.embedding_init_dtype,
        )
        self.group = self.word_embeddings.plan.group
        self.scatter_in_lookup = scatter_in_lookup
        self.position_embeddings = (
            PositionEmbedding(max_sequence_length, config) if self.has_positions else None
        )
        self.tokentype_embeddings = (
            PositionEmbedding(num_tokentypes, config) if num_tokentypes else None
        )

    def construct(
        self, input_ids: Tensor, position_ids: Tensor | None, tokentype_ids: Tensor | None = None
    ) -> Tensor:
        """[b, s] -> [s(/p), b, h]."""
        if (tokentype_ids is None) != (self.tokentype_embeddings is None):
            raise ValueError(
                "tokentype_ids must be given exactly when the model was built with num_tokentypes"
            )
        if self.scatter_in_lookup:
            embeddings = self.word_embeddings(input_ids)  # [s/p, b, h]
        else:
            # Transposing ids is free; transposing embeddings would copy h numbers per token.
            embeddings = self.word_embeddings(memory.transposed(input_ids))  # [s, b, h]
            if self.position_embeddings is not None:
                embeddings = embeddings + self.position_embeddings(memory.transposed(position_ids))
            if self.tokentype_embeddings is not None:
                embeddings = embeddings + self.tokentype_embeddings(
                    memory.transposed(tokentype_ids)
                )
            if self.sequence_parallel:
                embeddings = mappings.scatter_to_sequence_parallel_region(embeddings, self.group)
        embeddings = autograd.cast(embeddings, self.residual_dtype)
        if self.dropout and self.training:
            with residual_dropout_stream(self.sequence_parallel):
                generator = share_of_draws(get_rng_tracker().current(), self.context)
                embeddings = ops.dropout(embeddings, self.dropout, generator)
        return embeddings


class TransformerLanguageModel(Cell):
    """Embedding, layers and, when the head is not tied, the head's weight.

    Args:
        config: model configuration.
        encoder_attn_mask_type: see ``CoreAttention``.
        num_tokentypes: rows of the token type table.
        add_encoder: must be True, the stack of layers.
        add_decoder: must be False, there is no cross-attention here.
        decoder_attn_mask_type: unused, part of the signature.
        add_pooler: must be False.
        pre_process: this rank holds the embedding.
        post_process: this rank holds the head.
        visual_encoder: must be None.
    """

    def __init__(  # noqa: PLR0913 - the predecessor's public signature
        self,
        config: TransformerConfig,
        encoder_attn_mask_type: enum.Enum,
        num_tokentypes: int = 0,
        add_encoder: bool = True,
        add_decoder: bool = False,
        decoder_attn_mask_type: enum.Enum = AttnMaskType.causal,
        add_pooler: bool = False,
        pre_process: bool = True,
        post_process: bool = True,
        visual_encoder: None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if not add_encoder or add_decoder or add_pooler or visual_encoder is not None:
            raise ValueError(
                f"add_encoder={add_encoder}, add_decoder={add_decoder}, add_pooler={add_pooler}, "
                f"visual_encoder={visual_encoder}; only decoder-only language models exist here: "
                "add_encoder=True and the others False or None"
            )
        self.pre_process, self.post_process = pre_process, post_process
        self.untied = config.untie_embeddings_and_output_weights
        self.seq_length = config.seq_length
        predicts_further = post_process and config.mtp_num_layers is not None
        if pre_process or predicts_further:
            self.embedding = Embedding(
                config.hidden_size,
                config.vocab_size,
                config.max_position_embeddings or config.seq_length,
                config.hidden_dropout_rate,
                config,
                num_tokentypes,
                is_copy=not pre_process,
            )
        self.context = context_parallel(config.parallel_config)
        self._local_tables: dict[int, tuple[Tensor, ...]] = {}
        self.rotary_pos_emb = None
        if config.multi_latent_attention:
            self.rotary_pos_emb = latent_rotary(config)
        elif config.position_embedding_type == "rope":
            self.rotary_pos_emb = RotaryEmbedding(
                config.kv_channels,
                config.rotary_percent,
                config.rotary_interleaved,
                config.rotary_seq_len_interpolation_factor,
                config.rotary_base,
                config.use_rope_scaling,
                config.rope_scaling_factor,
                dtype="float32" if config.apply_rope_fusion else config.compute_dtype,
            )
        self.encoder = ParallelTransformer(
            config,
            ModelType.encoder_or_decoder,
            LayerType.encoder,
            encoder_attn_mask_type,
            pre_process=pre_process,
            post_process=post_process,
            num_tokentypes=num_tokentypes,
        )
        self.mtp = None
        if predicts_further:
            self.encoder.draws.begin_further_layers()
            self.mtp = MultiTokenPredictionBlock(config, self.encoder.build_layer)
        if post_process and self.untied:
            self.encoder.draws.begin_head(self._count_further_draws(config))
            self.output_layer = ColumnParallelLinear(
                config.hidden_size,
                config.vocab_size,
                config=config,
                init_method=normal(config.init_method_std),
                bias=False,
                param_init_dtype=config.params_dtype,
                compute_dtype=config.compute_dtype,
            )
            self.output_layer.weight.is_embedding_or_output_parameter = True

    def _count_further_draws(self, config: TransformerConfig) -> int:
        """Words of the initialisation stream that the layers behind the model take."""
        if self.mtp is None or not self.encoder.draws.is_active:
            return 0
        with counting_draws() as count:
            MultiTokenPredictionBlock(config, self.encoder.build_layer)
        return count.words

    def further_hidden_states(
        self,
        hidden_states: Tensor,
        ids_ahead: Sequence[Tensor],
        position_ids: Tensor | None,
        attention_mask: AttentionMask,
    ) -> list[Tensor]:
        """Hidden states [s(/p), b, h] that predict the tokens 2, 3, ... ahead.

        Args:
            hidden_states: the model's own, normalized.
            ids_ahead: ids [b, s] of the tokens 1, 2, ... ahead of each place.
            position_ids: as for the model.
            attention_mask: as for the model.
        """
        assert self.mtp is not None, "asked of a model with layers for further tokens"
        embeddings = [self.embedding(ids, position_ids) for ids in ids_ahead]
        rotary = None
        if self.rotary_pos_emb is not None:
            rotary = self._rotary_tables(ids_ahead[0].shape[1])
        return self.mtp(embeddings, hidden_states, attention_mask, rotary)

    def set_input_tensor(self, input_tensor: Tensor | None) -> None:
        """Activations from the previous pipeline stage."""
        self.encoder.set_input_tensor(input_tensor)

    def construct(
        self,
        enc_input_ids: Tensor | None,
        enc_position_ids: Tensor | None,
        enc_attn_mask: Tensor | None,
        *,
        tokentype_ids: Tensor | None = None,
        retriever_input_ids: None = None,
        retriever_position_ids: None = None,
        retriever_attn_mask: None = None,
        inference_params: None = None,
    ) -> Tensor:
        """Ids [b, s] -> hidden states [s(/p), b, h] after the final norm (on the last stage).

        Only the first stage reads ids and positions.
        """
        hidden_states = None
        if self.pre_process:
            hidden_states = self.embedding(enc_input_ids, enc_position_ids, tokentype_ids)
        rotary = None
        if self.rotary_pos_emb is not None:
            rotary = self._rotary_tables(self.encoder.sequence_length(hidden_states))
        return self.encoder(hidden_states, enc_attn_mask, rotary)

    def _rotary_tables(self, length: int) -> tuple[Tensor, ...]:
        """Rotary tables of the tokens in the layers: of this rank's share of the sequence."""
        if self.context is None:
            return self.rotary_pos_emb(length)
        if length not in self._local_tables:
            whole = length * self.context.size
            places = self.context.positions(whole)
            self._local_tables[length] = tuple(
                memory.from_numpy(np.ascontiguousarray(memory.as_numpy(table)[places]))
                for table in self.rotary_pos_emb(whole)
            )
        return self._local_tables[length]


def get_language_model(  # noqa: PLR0913 - the predecessor's public signature
    config: TransformerConfig,
    num_tokentypes: int,
    add_pooler: bool,
    encoder_attn_mask_type: enum.Enum,
    add_encoder: bool = True,
    add_decoder: bool = False,
    decoder_attn_mask_type: enum.Enum | None = None,
    pre_process: bool = True,
    post_process: bool = True,
) -> tuple[TransformerLanguageModel, str]:
    """(language model, its key in checkpoints)."""
    model = TransformerLanguageModel(
        config,
        encoder_attn_mask_type,
        num_tokentypes=num_tokentypes,
        add_encoder=add_encoder,
        add_decoder=add_decoder,
        decoder_attn_mask_type=decoder_attn_mask_type or AttnMaskType.causal,
        add_pooler=add_pooler,
        pre_process=pre_process,
        post_process=post_process,
    )
    return model, "language_model"
