# SPDX-License-Identifier: Apache-2.0
"""``generate`` for models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from hashlib import blake2b
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell
from numpy.typing import NDArray

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core.inference.drafts import Drafts, ModelDrafts, PromptDrafts
from mindspeed_ms.core.inference.engine import InferenceEngine, position_limit
from mindspeed_ms.core.inference.layer_drafts import LayerDrafts
from mindspeed_ms.core.inference.logits_processors import LogitsProcessor
from mindspeed_ms.engine.parallel_setup import DEFAULT_SEED
from mindspeed_ms.toolkit import given
from mindspeed_ms.toolkit.generation.beam import beam_search
from mindspeed_ms.toolkit.generation.config import GenerationConfig, check_together, of_file
from mindspeed_ms.toolkit.generation.drafted import sample_drafted
from mindspeed_ms.toolkit.generation.inputs import Prompts, matrix, prompts_of
from mindspeed_ms.toolkit.generation.output import GenerateOutput, transition_scores
from mindspeed_ms.toolkit.generation.room import require_room
from mindspeed_ms.toolkit.generation.rules import (
    AllowedTokens,
    Stopping,
    StoppingCriterion,
    processors_of,
)
from mindspeed_ms.toolkit.generation.sample import Task, sample
from mindspeed_ms.toolkit.generation.streamers import BaseStreamer

Search = Callable[[Task], GenerateOutput]
_ASSISTANTS = {"num_assistant_tokens": 20, "assistant_confidence_threshold": 0.4}
"""What options of drafts are where neither caller nor assistant says anything."""

FIX = "lower max_new_tokens (or max_length), or the number of sequences"

_MOST_SLOTS = 1 << 20


class GenerationMixin:
    """Adds ``generate`` to a class with ``build``, ``engine_config``, ``active``.

    Attributes:
        generation_config: options of the model, an object or a mapping of them.
        decodes_in_int8: see ``InferenceEngine``.
    """

    generation_config: GenerationConfig | Mapping[str, Any]
    decodes_in_int8 = False
    _num_generations = 0

    def build(self) -> Sequence[Cell]:
        """The model's chunks on this rank."""
        raise NotImplementedError

    @property
    def engine_config(self) -> AllConfig:
        """The configuration it was built with."""
        raise NotImplementedError

    def active(self) -> AbstractContextManager[None]:
        """Context in which the model's groups are the current ones."""
        return nullcontext()

    def inference_engine(self, num_slots: int = 1) -> InferenceEngine:
        """The model over a new cache, for those who choose tokens themselves, as servers do.

        Args:
            num_slots: sequences that are expected at a time.
        """
        given.whole("num_slots", num_slots, 1)
        if num_slots > _MOST_SLOTS:
            raise ValueError(f"num_slots is {num_slots}, but at most {_MOST_SLOTS} are kept")
        config = self.engine_config
        return InferenceEngine(
            self.build(),
            config.model_config,
            vocab_size=config.dataset_config.vocab_size,
            num_slots=num_slots,
            in_int8=self.decodes_in_int8,
        )

    @np.errstate(over="ignore", invalid="ignore")  # scores may leave fp32, and be inf or nan then
    def generate(  # noqa: PLR0913 - the public signature of transformers
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriterion] | None = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        streamer: BaseStreamer | None = None,
        tokenizer: Any = None,
        seed: int | None = None,
        search: Search | None = None,
        **options: Any,
    ) -> Tensor | GenerateOutput:
        """Go on with prompts.

        Options that are given here come before those of ``generation_config``, of the model, and
        the defaults of ``transformers``; see ``GenerationConfig``. One that is None here has no
        effect, whatever the model says. Their meaning is that of ``transformers`` 5, token for
        token for greedy choices and beams. Drawn tokens depend on the seed and on each prompt, not
        on the layout, the place in the batch, or other prompts.

        Args:
            input_ids: [b, s] or [s]; a tensor, an array or lists.
            attention_mask: [b, s], 0 for padding, on the left or on the right. None: without a
                mask, ids of padding are padding if they do not end texts.
            generation_config: options.
            logits_processor: functions of ids [b, s] and scores fp32 [b, v], NumPy arrays, that
                return scores; applied behind those of the options, before sampling narrows down.
            stopping_criteria: functions of ids and scores that tell whether each row ends.
            prefix_allowed_tokens_fn: function of a prompt's number and a row's ids that returns the
                tokens that may come next.
            streamer: is handed the prompt, then the token of every step, on the first rank.
            tokenizer: for ``stop_strings``.
            seed: of drawn tokens. None: ``mindspore.set_seed``'s, and another one at each call.
            search: chooses the tokens; None: what the options ask for.
            options: see ``GenerationConfig``.

        Returns:
            int32 [b * num_return_sequences, s + new tokens], rows that ended earlier padded; or a
            ``GenerateOutput`` with ``return_dict_in_generate``.

        Raises:
            TypeError: an unknown option; names the nearest.
            ValueError: options or prompts that cannot be served; says which.

        Parallelism: all ranks of the model call it with the same arguments, and get the same.
        """
        inputs, places = options.pop("inputs", None), options.pop("position_ids", None)
        input_ids = inputs if input_ids is None else input_ids
        assistant = options.pop("assistant_model", None)
        own = given.callables("logits_processor", logits_processor)
        stops = given.callables("stopping_criteria", stopping_criteria)
        _check_hooks(streamer, prefix_allowed_tokens_fn, search, assistant)
        config, is_default_length = self._options(generation_config, options, assistant is not None)
        pad, ends = config.pad_token_id, config.end_tokens
        prompts = prompts_of(input_ids, attention_mask, pad, ends, config.bos_token_id).at(places)
        self._set_lengths(config, prompts, is_default_length)
        require_room(self.engine_config, len(prompts.ids) * _copies(config), config.max_length, FIX)
        if streamer is not None and config.num_beams > 1:
            raise ValueError("a streamer shows tokens as they are chosen, which beams do not know")
        copies = _copies(config)
        build = partial(processors_of, config, own=own)
        allowed = prefix_allowed_tokens_fn
        processors = build(prompts, copies=copies, allowed=allowed)
        with self._engine(config, assistant, len(prompts.ids) * copies) as (engine, drafts):
            task = Task(
                engine=engine,
                prompts=prompts,
                config=config,
                processors=processors,
                stopping=Stopping(config, tokenizer, stops),
                pad=ends[0] if pad is None and ends else pad,
                seed=self._next_seed() if seed is None else given.whole("seed", seed, 0),
                streamer=streamer if comm.get_rank() == 0 else None,
                drafts=drafts,
                row_processors=lambda row: build(prompts.row(row), allowed=_of_row(allowed, row)),
            )
            output = (search or _search(task))(task)
        return output if config.return_dict_in_generate else output.sequences

    @contextmanager
    def _engine(
        self, config: GenerationConfig, assistant: GenerationMixin | None, num_slots: int
    ) -> Iterator[tuple[InferenceEngine, Drafts | None]]:
        """Context with the model's engine, and who proposes tokens for it, if somebody does."""
        with ExitStack() as stack:
            if assistant is not None:
                with assistant.active():  # an engine keeps the groups that it begins with
                    helper = stack.enter_context(assistant.inference_engine(num_slots))
            stack.enter_context(self.active())
            engine = stack.enter_context(self.inference_engine(num_slots))
            if config.use_mtp:
                yield engine, LayerDrafts(engine)
            elif config.prompt_lookup_num_tokens:
                count = config.prompt_lookup_num_tokens
                yield engine, PromptDrafts(engine, count, config.max_matching_ngram_size)
            elif assistant is not None:
                own = config.filled(_as_config(assistant.generation_config), _ASSISTANTS)
                count, least = own.num_assistant_tokens, own.assistant_confidence_threshold
                yield engine, ModelDrafts(engine, helper, count, least)
            else:
                yield engine, None

    def _options(
        self,
        generation_config: GenerationConfig | Mapping[str, Any] | None,
        options: dict[str, Any],
        is_assisted: bool,
    ) -> tuple[GenerationConfig, bool]:
        """All options, and whether nobody has set ``max_length``."""
        _refuse_others(options)
        given = _as_config(generation_config)
        given.update(**options)
        own = _as_config(self.generation_config)
        config = given.filled(own)
        config.set_nothing([name for name, value in options.items() if value is None])
        check_together(config, is_assisted)
        return config, given.max_length is None and own.max_length is None

    def compute_transition_scores(
        self,
        sequences: Any,
        scores: Any,
        beam_indices: Any = None,
        normalize_logits: bool = False,
    ) -> NDArray:
        """Score of every new token in the step that chose it; see ``transition_scores``."""
        return transition_scores(sequences, scores, beam_indices, normalize_logits)

    def _set_lengths(
        self, config: GenerationConfig, prompts: Prompts, is_default_length: bool
    ) -> None:
        """Give ``max_length`` and ``min_length`` their final values.

        Args:
            config: all options; changed.
            prompts: the prompts.
            is_default_length: nobody has set ``max_length``.

        Raises:
            ValueError: the prompt leaves no room, or the model has too few positions.
        """
        length, tokens = prompts.ids.shape[1], int(prompts.seen.sum(axis=1).max())
        model = self.engine_config.model_config
        if config.max_new_tokens is not None:
            config.max_length = config.max_new_tokens + length
        elif is_default_length:
            most = model.max_position_embeddings
            config.max_length += length
            if most is not None and length < most:
                config.max_length = min(config.max_length, most)
        if config.min_new_tokens is not None:
            config.min_length = config.min_new_tokens + length
        if length >= config.max_length:
            raise ValueError(
                f"the prompt has {length} tokens, but max_length is {config.max_length}; raise it, "
                "or set max_new_tokens"
            )
        limit = position_limit(model)
        wanted = tokens + config.max_length - length - 1  # the last token is not read again
        if limit is not None and wanted > limit:
            raise ValueError(
                f"a prompt of {tokens} tokens and {config.max_length - length} new ones need "
                f"{wanted} positions, but the model has {limit}; shorten the prompt, or lower "
                "max_new_tokens"
            )

    def _next_seed(self) -> int:
        """Another seed at each call, the same in every run."""
        base = ms.get_seed()
        number = self._num_generations
        self._num_generations = number + 1
        text = f"{DEFAULT_SEED if base is None else base}:{number}"
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _copies(config: GenerationConfig) -> int:
    """Sequences that go on from a prompt."""
    return config.num_beams if config.num_beams > 1 else config.num_return_sequences


def _search(task: Task) -> Search:
    """What chooses the tokens."""
    if task.config.num_beams > 1:
        return beam_search
    return sample if task.drafts is None else sample_drafted


def _check_hooks(streamer: Any, allowed: Any, search: Any, assistant: Any) -> None:
    given.with_methods("assistant_model", assistant, "inference_engine", "active")
    given.with_methods("streamer", streamer, "put", "end")
    given.with_methods("prefix_allowed_tokens_fn", allowed, "__call__")
    given.with_methods("search", search, "__call__")


def _of_row(allowed: AllowedTokens | None, row: int) -> AllowedTokens | None:
    """``prefix_allowed_tokens_fn`` of one prompt alone."""
    return None if allowed is None else lambda _, ids: allowed(row, ids)


def _as_config(options: GenerationConfig | Mapping[str, Any] | None) -> GenerationConfig:
    """A copy of options that are given in any form."""
    if options is None:
        return GenerationConfig()
    if isinstance(options, GenerationConfig):
        return copy.deepcopy(options)
    return of_file(options)


_ELSEWHERE = {
    "assistant_tokenizer": "an assistant_model has the model's tokens",
    "negative_prompt_ids": "there is no second, unguided run of the model",
    "negative_prompt_attention_mask": "there is no second, unguided run of the model",
    "custom_generate": "code is not loaded from elsewhere",
    "inputs_embeds": "prompts are ids",
    "past_key_values": "every call has a cache of its own",
}


def _refuse_others(options: dict[str, Any]) -> None:
    """Take out arguments of ``transformers`` that are no options.

    Raises:
        ValueError: one asks for what is not there.
    """
    for name, reason in _ELSEWHERE.items():
        if options.pop(name, None) is not None:
            raise ValueError(f"{name} is given, but {reason}; leave it out")
    for name in ("synced_gpus", "trust_remote_code"):
        options.pop(name, None)
    types = options.pop("token_type_ids", None)
    if types is not None and matrix(types, 0)[0].any():
        raise ValueError("token_type_ids are not all 0, but prompts have one type; leave them out")


class TextGenerator(GenerationMixin):
    """A model that was built by other means, such as the chunks of a run.

    Args:
        chunks: the model of this rank.
        config: its configuration.
        generation_config: options of the model.
    """

    def __init__(
        self,
        chunks: Sequence[Cell],
        config: AllConfig,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> None:
        self._chunks, self._config = chunks, config
        self.generation_config = generation_config or GenerationConfig()

    def build(self) -> Sequence[Cell]:
        """The model's chunks on this rank."""
        return self._chunks

    @property
    def engine_config(self) -> AllConfig:
        """The configuration it was built with."""
        return self._config
