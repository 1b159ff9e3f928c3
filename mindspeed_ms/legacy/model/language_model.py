# SPDX-License-Identifier: Apache-2.0
"""Embedding, transformer and head of a language model.

Legend: s sequence, b batch, h hidden, v vocabulary, p tensor parallel ranks.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.context_parallel import context_parallel, handed, share_of_draws
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.peft.prepare import prepare
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.tensor_parallel import VocabParallelEmbedding, get_rng_tracker, mappings
from mindspeed_ms.legacy.model.attention import AttentionMask
from mindspeed_ms.legacy.model.enums import AttnMaskType, LayerType, ModelType
from mindspeed_ms.legacy.model.from_spec import column_linear, init_method
from mindspeed_ms.legacy.model.initialization import StageDraws
from mindspeed_ms.legacy.model.multi_latent_attention import latent_rotary
from mindspeed_ms.legacy.model.multi_token_prediction import MultiTokenPredictionBlock
from mindspeed_ms.legacy.model.norm import norm_from_spec
from mindspeed_ms.legacy.model.position_embedding import PositionEmbedding
from mindspeed_ms.legacy.model.query_layer import QueryLayer
from mindspeed_ms.legacy.model.rotary_pos_embedding import RotaryEmbedding, RotaryPair
from mindspeed_ms.legacy.model.transformer import ParallelTransformer, residual_dropout_stream
from mindspeed_ms.legacy.model.unserved import refuse_unserved
from mindspeed_ms.models.gpt import embedding_spec, gpt_spec
from mindspeed_ms.models.model import EmbeddingSpec
from mindspeed_ms.models.parameter import Init
from mindspeed_ms.models.width import embedding_factor


class Embedding(Cell):
    """Token embedding plus, if the model learns them, position and token type embeddings.

    Args:
        hidden_size: h, as in the configuration.
        vocab_size: padded vocabulary size over all ranks, as in the configuration.
        max_sequence_length: rows of the position table, as in the configuration.
        embedding_dropout_prob: dropout on the sum.
        config: model configuration.
        num_tokentypes: rows of the token type table, 0 for none.
        spec: the tables, default the configuration's.
        groups: of this rank, default the current ones.

    Shapes:
        ids and position ids [b, s] -> [s, b, h]; with sequence parallelism [s/p, b, h]. Batch first
        where the cell is a script's own, whose config has ``data_layout: BSH``.

    Raises:
        ValueError: sizes that differ from the configuration's.
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
        spec: EmbeddingSpec | None = None,
        groups: ProcessGroups | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        is_own = spec is None  # of a script; parts of a model never have the batch first
        spec = spec or sized(
            embedding_spec(config, num_tokentypes), hidden_size, vocab_size, max_sequence_length
        )
        groups = groups or ProcessGroups.current()
        self.dropout, self.multiplier = embedding_dropout_prob, embedding_factor(config)
        self.context = context_parallel(config.parallel_config)
        alpha = config.lora_config.neftune_noise_alpha or 0.0
        self.noise = alpha / math.sqrt(config.seq_length * spec.word.width)
        self.residual_dtype = memory.dtype_of(config.residual_dtype)
        self.sequence_parallel = config.parallel_config.sequence_parallel
        # Only a plain lookup can leave the table already split along the sequence.
        is_plain = spec.position is None and spec.tokentype is None
        self.scatter_in_lookup = self.sequence_parallel and is_plain
        self.group = groups.tensor
        self.batch_first = is_own and config.batch_first
        self.word_embeddings = VocabParallelEmbedding(
            spec.word.rows,
            spec.word.width,
            init_method=init_method(spec.word.init),
            reduce_scatter_embeddings=self.scatter_in_lookup,
            config=config,
            param_init_dtype=spec.word.dtype,
            tp_group=groups.tensor,
        )
        self.norm = None if spec.norm is None else norm_from_spec(spec.norm, config)
        self.position_embeddings = self.tokentype_embeddings = None
        if spec.position is not None:
            self.position_embeddings = PositionEmbedding(spec.position)
        if spec.tokentype is not None:
            self.tokentype_embeddings = PositionEmbedding(spec.tokentype)

    def construct(
        self, input_ids: Tensor, position_ids: Tensor | None, tokentype_ids: Tensor | None = None
    ) -> Tensor:
        """[b, s] -> [s(/p), b, h]; without positions they count the tokens of the sequence."""
        if position_ids is None and self.position_embeddings is not None:
            position_ids = self._places(*input_ids.shape)
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
        if self.norm is not None:
            embeddings = self.norm(self._with_noise(embeddings))
        if self.multiplier != 1.0:
            embeddings = ops.scaled(embeddings, self.multiplier)
        if self.norm is None:
            embeddings = self._with_noise(embeddings)
        embeddings = ops.cast(embeddings, self.residual_dtype)
        if self.dropout and self.training:
            with residual_dropout_stream(self.sequence_parallel):
                generator = share_of_draws(get_rng_tracker().current(), self.context)
                embeddings = ops.dropout(embeddings, self.dropout, generator)
        return mappings.exchanged(embeddings) if self.batch_first else embeddings

    def _places(self, rows: int, length: int) -> Tensor:
        """Places [b, s] of this rank's tokens in the whole sequence."""
        places = np.arange(length)
        if self.context is not None:
            places = self.context.positions(length * self.context.size)
        return Tensor(np.tile(places.astype(np.int32), (rows, 1)))

    def _with_noise(self, embeddings: Tensor) -> Tensor:
        """Embeddings with uniform noise, in training and where it is asked for.

        As in ``transformers`` it belongs to the lookup: norms and dropout see it too.

        Source: Jain et al., 2023 (NEFTune), algorithm 1.
        """
        if not self.noise or not self.training:
            return embeddings
        with residual_dropout_stream(self.sequence_parallel):
            generator = share_of_draws(get_rng_tracker().current(), self.context)
            drawn = ops.random_uniform(tuple(embeddings.shape), -self.noise, self.noise, generator)
        return embeddings + ops.cast(drawn, embeddings.dtype)


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
        groups: of this rank, default the current ones.
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
        *,
        groups: ProcessGroups | None = None,
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
        self.seq_length = config.seq_length
        self.batch_first = config.batch_first
        """Whether hidden states are [b, s, h] outside; a model that goes on with them sets it."""
        spec = gpt_spec(config, num_tokentypes)
        groups = groups or ProcessGroups.current()
        draws = StageDraws(spec, config.parallel_config.use_cpu_initialization)
        predicts_further = post_process and bool(spec.further)
        if pre_process or predicts_further:
            self.embedding = Embedding(
                spec.hidden_size,
                spec.vocab_size,
                config.max_position_embeddings or config.seq_length,
                config.hidden_dropout_rate,
                config,
                spec=spec.embedding if pre_process else empty(spec.embedding),
                groups=groups,
            )
        self.context = context_parallel(config.parallel_config)
        self.detaches_further = config.mtp_detach_heads
        self._local_tables: dict[int, tuple[Tensor, ...]] = {}
        self.rotary_pos_emb = rotary_embedding(config)
        self.encoder = ParallelTransformer(
            config,
            ModelType.encoder_or_decoder,
            LayerType.encoder,
            encoder_attn_mask_type,
            pre_process=pre_process,
            post_process=post_process,
            spec=spec,
            groups=groups,
        )
        self.mtp = self.query_layer = None
        if post_process and spec.query is not None:
            draws.begin_further_layers()
            self.query_layer = QueryLayer(config, encoder_attn_mask_type, spec.query, groups)
        if predicts_further:
            draws.begin_further_layers()
            self.mtp = MultiTokenPredictionBlock(
                config, encoder_attn_mask_type, spec.own_further, groups
            )
        if post_process and spec.head is not None:
            draws.begin_head()
            self.output_layer = column_linear(spec.head, config, groups)
        if config.lora_config.use_lora:
            prepare(self, spec, "language_model.")

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
        if self.detaches_further:
            embeddings = [autograd.detach(one) for one in embeddings]
            hidden_states = autograd.detach(hidden_states)
        rotary = None
        if self.rotary_pos_emb is not None:
            rotary = self._rotary_tables(ids_ahead[0].shape[1])
        return self.mtp(embeddings, hidden_states, attention_mask, rotary)

    def further_step(
        self, depth: int, ids: Tensor, hidden_states: Tensor, context: InferenceContext
    ) -> Tensor:
        """Hidden states [t(/p), 1, h] of one depth for the new tokens of a cache.

        Args:
            depth: number of the layer, from 0.
            ids: [1, t], of the tokens ``depth + 1`` ahead of each place.
            hidden_states: [t(/p), 1, h], of the depth before, or the model's own.
            context: the places.
        """
        assert self.mtp is not None, "asked of a model with layers for further tokens"
        rotary = None
        if self.rotary_pos_emb is not None:
            rotary = self.rotary_pos_emb.tables_for(context.positions, context.lengths)
        layer, context.repetition = self.mtp.layer_of(depth)
        return layer(self.embedding(ids, None), hidden_states, None, rotary, context)

    def set_input_tensor(self, input_tensor: Tensor | None) -> None:
        """Activations from the previous pipeline stage."""
        if input_tensor is not None:
            input_tensor = mappings.exchanged(input_tensor) if self.batch_first else input_tensor
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
        inference_params: InferenceContext | None = None,
    ) -> Tensor:
        """Ids [b, s] -> hidden states [s(/p), b, h] after the final norm (on the last stage).

        With ``batch_first`` they are [b, s(/p), h], and so are those between stages.

        Only the first stage reads ids and positions; a query layer reads positions too.
        """
        refuse_unserved(
            retriever_input_ids=retriever_input_ids,
            retriever_position_ids=retriever_position_ids,
            retriever_attn_mask=retriever_attn_mask,
        )
        ids = enc_input_ids if enc_position_ids is None else enc_position_ids
        if self.context is not None and ids is not None:
            handed.check_length(ids.shape[1], self.context.size)
        if self.context is not None and enc_position_ids is not None:
            handed.check_positions(lambda: enc_position_ids[0].asnumpy().tolist())
        hidden_states = None
        if self.pre_process:
            hidden_states = self.embedding(enc_input_ids, enc_position_ids, tokentype_ids)
        rotary = None
        if self.rotary_pos_emb is not None:
            if inference_params is not None:
                context = inference_params
                rotary = self.rotary_pos_emb.tables_for(context.positions, context.lengths)
            else:
                rotary = self._rotary_tables(self.encoder.sequence_length(hidden_states))
        output = self.encoder(hidden_states, enc_attn_mask, rotary, inference_params)
        if self.query_layer is not None:
            output = self.query_layer(output, enc_position_ids, enc_attn_mask, inference_params)
        return mappings.exchanged(output) if self.batch_first else output

    def _rotary_tables(self, length: int) -> tuple[Tensor, ...]:
        """Rotary tables of the tokens in the layers: of this rank's share of the sequence."""
        assert self.rotary_pos_emb is not None, "asked of a model with rotary embedding"
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


def sized(spec: EmbeddingSpec, hidden: int, vocabulary: int, positions: int) -> EmbeddingSpec:
    """The tables with sizes of the caller's own."""
    word = replace(spec.word, width=hidden, rows=vocabulary)
    rows = positions + (spec.position.offset if spec.position else 0)
    position = spec.position and replace(spec.position, width=hidden, rows=rows)
    return replace(spec, word=word, position=position)


def empty(spec: EmbeddingSpec) -> EmbeddingSpec:
    """Tables of zeros, for the copies of another stage; nothing is drawn for them."""
    return replace(spec, word=replace(spec.word, init=Init(value=0.0)))


def rotary_embedding(config: TransformerConfig) -> RotaryEmbedding | RotaryPair | None:
    """The rotation of queries and keys; None for a model without."""
    if config.multi_latent_attention:
        return latent_rotary(config)
    if config.position_embedding_type != "rope":
        return None
    assert config.kv_channels is not None, "filled in by the configuration"
    dtype = "float32" if config.apply_rope_fusion else config.compute_dtype
    own = RotaryEmbedding(
        config.kv_channels,
        config.rotary_percent,
        config.rotary_interleaved,
        config.rotary_seq_len_interpolation_factor,
        config.rotary_base,
        config.use_rope_scaling,
        config.rope_scaling_factor,
        dtype=dtype,
        stretching=config.rope_scaling,
        longest=config.max_position_embeddings or config.seq_length,
    )
    if config.rotary_base_local is None:
        return own
    local = RotaryEmbedding(
        config.kv_channels,
        config.rotary_percent,
        config.rotary_interleaved,
        rotary_base=config.rotary_base_local,
        dtype=dtype,
    )
    return RotaryPair(own, local)


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
