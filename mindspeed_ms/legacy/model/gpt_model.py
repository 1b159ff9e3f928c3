# SPDX-License-Identifier: Apache-2.0
"""GPT: a decoder-only language model with its loss. Legend: s sequence, b batch, v vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import loss_options
from mindspeed_ms.core.context_parallel import (
    context_parallel,
    count_over_sequence,
    gather_tokens,
)
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.peft.prepare import freeze
from mindspeed_ms.core.teacher import Teacher
from mindspeed_ms.core.tensor_parallel import VocabParallelCrossEntropy, mappings
from mindspeed_ms.legacy.model.attention import AttentionMask
from mindspeed_ms.legacy.model.decoding import Decoder, decoder_of
from mindspeed_ms.legacy.model.enums import AttnMaskType
from mindspeed_ms.legacy.model.eos_mask import EosMask
from mindspeed_ms.legacy.model.language_model import get_language_model
from mindspeed_ms.legacy.model.loss import LossWithMask
from mindspeed_ms.legacy.model.module import Module
from mindspeed_ms.legacy.model.multi_token_prediction import moved_ahead, with_further_losses
from mindspeed_ms.legacy.model.transformer import ParallelLMLogits
from mindspeed_ms.legacy.model.unserved import refuse_unserved


def post_language_model_processing(  # noqa: PLR0913 - the predecessor's public signature
    parallel_lm_logits: Callable[..., Tensor],
    loss_fn: Cell,
    lm_output: Tensor,
    labels: Tensor | None,
    logit_weights: Tensor,
    parallel_output: bool,
    fp16_lm_cross_entropy: bool,
    loss_mask: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    """Head and loss: hidden states [s, b, h] -> scalar loss, or logits [b, s, v] without labels.

    ``bias``: of the head, [v/p], if it has one.

    Raises:
        ValueError: fp16_lm_cross_entropy with logits of another type.
    """
    output = parallel_lm_logits(lm_output, logit_weights, parallel_output, bias)
    if labels is None:
        return memory.contiguous(output.swapaxes(0, 1))
    if fp16_lm_cross_entropy and output.dtype != mstype.float16:
        raise ValueError(
            f"fp16_lm_cross_entropy is True but the logits are {output.dtype}; train with fp16 "
            "or switch it off"
        )
    # Our cross entropy computes in fp32 from logits of any type: it needs no fp32 copy of them.
    per_token = getattr(loss_fn, "loss_func", loss_fn)
    if not fp16_lm_cross_entropy and not isinstance(per_token, VocabParallelCrossEntropy):
        output = ops.cast(output, mstype.float32)
    # Labels and mask follow the layout of the logits: v times fewer numbers to transpose.
    return loss_fn(output, memory.transposed(labels), memory.transposed(loss_mask))


class GPTModel(Module):
    """GPT with vocabulary-parallel head and masked mean loss.

    Args:
        config: model configuration.
        num_tokentypes: rows of the token type table, 0 for none.
        parallel_output: keep logits split over the tensor parallel group; the loss needs that.
        pre_process: this rank holds the embedding.
        post_process: this rank holds the head.
        eod: id of the end-of-document token: positions and masks are then made from the tokens
            when the batch brings none.
        reset_position_ids: count positions from 0 in each document (with ``eod``).

    Shapes:
        tokens, position_ids, labels [b, s] integers; loss_mask [b, s]; with context parallelism
        this rank's share of s. attention_mask: see ``AttentionMask``; None = causal.
        Returns the scalar loss; without labels logits [b, s, v/p]; on a stage without the head
        hidden states [s(/p), b, h].
    """

    def __init__(
        self,
        config: TransformerConfig,
        num_tokentypes: int = 0,
        parallel_output: bool = True,
        pre_process: bool = True,
        post_process: bool = True,
        *,
        eod: int | None = None,
        reset_position_ids: bool = False,
    ) -> None:
        super().__init__(
            config,
            share_embeddings_and_output_weights=not config.untie_embeddings_and_output_weights,
        )
        self.parallel_output = parallel_output
        self.pre_process, self.post_process = pre_process, post_process
        self.fp16_lm_cross_entropy = config.fp16_lm_cross_entropy
        self.context = context_parallel(config.parallel_config)
        self.teacher: Teacher | None = None
        self.eod_mask = None
        if eod is not None:
            self.eod_mask = EosMask(
                config.dataset_config.batch_size, config.seq_length, eod, reset_position_ids
            )
        self.language_model, _ = get_language_model(
            config=config,
            num_tokentypes=num_tokentypes,
            add_pooler=False,
            encoder_attn_mask_type=AttnMaskType.causal,
            pre_process=pre_process,
            post_process=post_process,
        )
        self.language_model.batch_first = False
        if post_process:
            self.parallel_lm_logits = ParallelLMLogits(
                config, bias=config.head_has_bias, compute_dtype=config.compute_dtype
            )
            self.parallel_lm_logits.batch_first = False
            self.loss = LossWithMask(
                VocabParallelCrossEntropy(),
                # The slope of a cap is computed from the logits that came out of it.
                owns_logits=config.final_logit_softcapping is None,
            )
        if self.share_embeddings_and_output_weights or config.mtp_num_layers is not None:
            self.initialize_word_embeddings()
        if config.lora_config.use_lora:
            freeze(self)  # the last stage's copy of the embedding, too, which is filled now

    def set_input_tensor(self, input_tensor: Tensor | None) -> None:
        """Activations from the previous pipeline stage."""
        self.language_model.set_input_tensor(input_tensor)

    def construct(  # noqa: PLR0913 - the predecessor's public signature
        self,
        tokens: Tensor | None,
        position_ids: Tensor | None,
        attention_mask: AttentionMask,
        loss_mask: Tensor | None = None,
        retriever_input_ids: None = None,
        retriever_position_ids: None = None,
        retriever_attn_mask: None = None,
        labels: Tensor | None = None,
        tokentype_ids: Tensor | None = None,
        inference_params: InferenceContext | None = None,
    ) -> Tensor:
        """Loss of a micro-batch; see the class. With ``inference_params`` see ``_logits``."""
        refuse_unserved(
            retriever_input_ids=retriever_input_ids,
            retriever_position_ids=retriever_position_ids,
            retriever_attn_mask=retriever_attn_mask,
        )
        if inference_params is not None:
            return self._logits(tokens, position_ids, inference_params)
        if self.eod_mask is not None and (position_ids is None or attention_mask is None):
            if tokens is None:
                raise ValueError(
                    "a model with eod makes its attention mask from the tokens, but this pipeline "
                    "stage was given none; let get_batch_func return tokens on every stage"
                )
            position_ids, attention_mask = self._documents_of(tokens)
        if self.teacher is not None and self.training and autograd.is_grad_enabled():
            self.teacher.look(tokens, position_ids, attention_mask)
        lm_output = self.language_model(
            tokens, position_ids, attention_mask, tokentype_ids=tokentype_ids
        )
        if not self.post_process:
            return lm_output
        weights = self.head_weights()
        whole_head: Callable[..., Tensor] = self.parallel_lm_logits

        def head(
            hidden: Tensor,
            labels: Tensor | None,
            loss_mask: Tensor | None,
            logits: Callable[..., Tensor] = whole_head,
        ) -> Tensor:
            return post_language_model_processing(
                logits,
                self.loss,
                hidden,
                labels,
                weights,
                self.parallel_output,
                self.fp16_lm_cross_entropy,
                loss_mask,
                self.head_bias(),
            )

        loss = head(lm_output, labels, loss_mask)
        predicts_further = self.language_model.mtp is not None and labels is not None
        if not (predicts_further and self.training and autograd.is_grad_enabled()):
            return loss
        if self.config.mtp_detach_heads:
            head = partial(head, logits=partial(whole_head, trains_table=False))
        further, masks = self._further_losses(
            head, lm_output, (tokens, labels, loss_mask), position_ids, attention_mask
        )
        shares = self._shares(loss_mask, masks)
        return with_further_losses(loss, further, self.config.mtp_loss_scaling_factor, shares)

    def _shares(self, loss_mask: Tensor, masks: Sequence[Tensor]) -> list[float] | None:
        """Tokens of further losses over those of the main one, if the run weighs by tokens."""
        if not loss_options.current().weighs_by_tokens:
            return None
        counts = [count_over_sequence(mask, self.loss.context_group)[1] for mask in masks]
        tokens = max(count_over_sequence(loss_mask, self.loss.context_group)[1], 1.0)
        return [count / tokens for count in counts]

    def head_weights(self) -> Parameter:
        """The head's matrix, which may be the table of token embeddings."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.language_model.output_layer.weight

    def head_bias(self) -> Parameter | None:
        """What the head adds."""
        return self.language_model.output_layer.bias if self.config.head_has_bias else None

    def decoder(self, in_int8: bool = False) -> Decoder | None:
        """The model as one native call per token; None where it has no such form.

        Args:
            in_int8: with the weights of linear layers as eight bits.
        """
        return decoder_of(self, in_int8)

    def _logits(
        self, tokens: Tensor | None, position_ids: Tensor | None, context: InferenceContext
    ) -> Tensor:
        """Logits of the places that the caller of a cache wants, [n, 1, v].

        On a stage without the head hidden states [t(/p), 1, h], see ``InferenceContext``.
        """
        hidden = self.language_model(tokens, position_ids, None, inference_params=context)
        if not self.post_process:
            return hidden
        plan = self.parallel_lm_logits.plan
        if plan.sequence_parallel:
            hidden = mappings.gather_from_sequence_parallel_region(hidden, group=plan.group)
        if context.keeps_hidden:
            context.hidden = hidden
        return self._logits_of(context.wanted(hidden))

    def _logits_of(self, hidden: Tensor) -> Tensor:
        """[n, 1, h], the same on all tensor parallel ranks, -> [n, 1, v]."""
        return self.parallel_lm_logits(
            hidden, self.head_weights(), False, self.head_bias(), is_whole=True
        )

    def draft(
        self, depth: int, ids: Tensor, hidden: Tensor, context: InferenceContext
    ) -> tuple[Tensor, Tensor]:
        """What a layer for further tokens expects, on a rank that holds the head.

        Args:
            depth: number of the layer, from 0.
            ids: [1, t], tokens ``depth + 1`` ahead of each place of the context.
            hidden: [t, 1, h], what the depth before returned, or the model's own.
            context: the places.

        Returns:
            Hidden states [t, 1, h], and logits [B, 1, v] behind the last place of each row.
        """
        plan = self.parallel_lm_logits.plan
        if plan.sequence_parallel:
            hidden = mappings.scatter_to_sequence_parallel_region(hidden, plan.group)
        hidden = self.language_model.further_step(depth, ids, hidden, context)
        if plan.sequence_parallel:
            hidden = mappings.gather_from_sequence_parallel_region(hidden, group=plan.group)
        return hidden, self._logits_of(context.wanted(hidden))

    def _further_losses(
        self,
        head: Callable[[Tensor, Tensor, Tensor], Tensor],
        lm_output: Tensor,
        batch: tuple[Tensor, Tensor, Tensor],
        position_ids: Tensor | None,
        attention_mask: AttentionMask,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Losses of the tokens 2, 3, ... ahead, and their masks.

        ``batch`` is tokens, labels and loss mask.

        The last places have no such tokens: the mask leaves them out.

        Raises:
            ValueError: this stage was given no tokens.
        """
        if batch[0] is None:
            raise ValueError(
                "a model with mtp_num_layers embeds the following tokens, but this pipeline stage "
                "was given none; let get_batch_func return tokens on every stage"
            )
        ahead = []
        for _ in range(self.config.mtp_num_layers or 0):
            batch = tuple(moved_ahead(values, self.context) for values in batch)
            ahead.append(batch)
        hidden = self.language_model.further_hidden_states(
            lm_output, [tokens for tokens, _, _ in ahead], position_ids, attention_mask
        )
        masks = [loss_mask for _, _, loss_mask in ahead]
        losses = [
            head(states, labels, loss_mask)
            for states, (_, labels, loss_mask) in zip(hidden, ahead, strict=True)
        ]
        return losses, masks

    def _documents_of(self, tokens: Tensor) -> tuple[Tensor, ops.Documents]:
        """Position ids of these tokens [b, s], and the documents of the whole sequences."""
        assert self.eod_mask is not None, "asked of a model with eod"
        if self.context is None:
            ids = memory.as_numpy(memory.contiguous(tokens))
        else:
            ids = gather_tokens(tokens, self.context)
        positions, documents = self.eod_mask.documents(ids)
        if self.context is not None:
            positions = positions[:, self.context.positions(ids.shape[1])]
        return memory.from_numpy(np.array(positions)), ops.Documents(documents, documents)
