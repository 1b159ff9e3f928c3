# SPDX-License-Identifier: Apache-2.0
"""Runs that Megatron-core computed, repeated here."""

import contextlib
import io
import logging
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import named_buffers, named_parameters, shard_of
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.legacy.model.megatron_names import load_megatron_parameters, megatron_names
from mindspeed_ms.training import initialize_megatron, pretrain

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"


def drawn(name, shape, *, is_zero_centered):
    """A parameter as a function of its name; norms and biases are not what training begins with."""
    values = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    if name.endswith("expert_bias"):
        return np.zeros(shape, np.float32)
    usual = 1.0 if name.endswith("norm.weight") and not is_zero_centered else 0.0
    return (usual + 0.1 * values).astype(np.float32)


def provider(pre_process, post_process, is_zero_centered):
    """The model of the current configuration with those parameters."""
    model = GPTModel(
        get_all_config().model_config, pre_process=pre_process, post_process=post_process
    )
    arrays, names = {}, megatron_names(model)
    for own, param in [*named_parameters(model), *named_buffers(model)]:
        name = names[own]
        shape = shard_of(param).full_shape(param.shape)
        arrays[name] = drawn(name, shape, is_zero_centered=is_zero_centered)
    load_megatron_parameters(model, arrays)
    return model


def replay(words, iterations, cache):
    """Steps of a run with these flags, from its weights and on its data."""
    data = (
        f"--data-path {GOLDEN}/corpus_text_document --tokenizer-type SentencePieceTokenizer "
        f"--tokenizer-model {GOLDEN}/tok.model --split 100,0,0 --data-cache-path {cache} "
        f"--num-workers 0 --eval-iters 0 --log-interval 1000 --exit-interval {iterations}"
    )
    comm.init_process_group()
    parallel_state.destroy_model_parallel()
    steps = []
    with contextlib.redirect_stdout(io.StringIO()):
        initialize_megatron(argv=f"{words} {data}".split())
        logging.getLogger("mindspeed_ms").setLevel(logging.WARNING)
        pretrain(
            None,
            partial(provider, is_zero_centered="--apply-layernorm-1p" in words),
            all_config=get_all_config(),
            on_step=steps.append,
        )
    parallel_state.destroy_model_parallel()
    return steps
