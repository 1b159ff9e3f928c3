# SPDX-License-Identifier: Apache-2.0
"""Short runs of small models that save, stop, and go on, for tests of checkpoints."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path

from pipeline_runs import provider

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.training import initialize_megatron, pretrain
from mindspeed_ms.training.checkpoint_config import spec_of

GOLDEN = Path(__file__).parent / "data" / "golden"

COMMON = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 "
    "--max-position-embeddings 32 --micro-batch-size 1 --global-batch-size 8 --lr 5e-3 "
    "--min-lr 1e-4 --lr-decay-style cosine --lr-warmup-iters 2 --weight-decay 0.1 --clip-grad 1.0 "
    "--init-method-std 0.1 --seed 1234 --eval-iters 0 --split 100,0,0 --train-iters 8 "
    "--tokenizer-type SentencePieceTokenizer --log-interval 1 --num-workers 0"
).split()

MODELS = {
    "gpt2": "--position-embedding-type learned_absolute --normalization LayerNorm".split(),
    "llama": (
        "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
        "--group-query-attention --num-query-groups 2 --ffn-hidden-size 48 "
        "--untie-embeddings-and-output-weights"
    ).split(),
    "experts": (
        "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
        "--ffn-hidden-size 48 --untie-embeddings-and-output-weights --multi-latent-attention "
        "--qk-layernorm --q-lora-rank 12 --kv-lora-rank 8 --qk-head-dim 8 --qk-pos-emb-head-dim 4 "
        "--v-head-dim 8 --mtp-num-layers 1 --num-experts 4 --moe-ffn-hidden-size 24 "
        "--moe-layer-freq [0,1,1,1] --moe-shared-expert-intermediate-size 16 --moe-grouped-gemm "
        "--moe-token-dispatcher-type alltoall --moe-router-score-function sigmoid "
        "--moe-router-enable-expert-bias --moe-router-load-balancing-type seq_aux_loss "
        "--moe-aux-loss-coeff 1e-2"
    ).split(),
}

MODELS["moe"] = [
    *MODELS["llama"],
    *"--num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 24".split(),
    *"--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2".split(),
    *"--moe-token-dispatcher-type alltoall".split(),
]

NO_DROPOUT = "--attention-dropout 0 --hidden-dropout 0".split()


def run(model, flags, data_cache):
    """Losses by iteration, and what was printed, of a run with these flags."""
    comm.init_process_group()
    parallel_state.destroy_model_parallel()
    steps = {}
    words = [
        *COMMON,
        *MODELS[model],
        *("--data-path", str(GOLDEN / "corpus_text_document")),
        *("--tokenizer-model", str(GOLDEN / "tok.model")),
        *("--data-cache-path", str(data_cache)),
        *flags,
    ]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        initialize_megatron(argv=words)
        pretrain(
            None,
            provider,
            all_config=get_all_config(),
            on_step=lambda step: steps.update({step.iteration: step}),
        )
        for handler in logging.getLogger("mindspeed_ms.lines").handlers:
            handler.flush()
    return {
        "loss": {number: step.losses["lm loss"] for number, step in steps.items()},
        "norm": {number: step.grad_norm for number, step in steps.items()},
        "lr": {number: step.learning_rate for number, step in steps.items()},
        "layers": {number: step.layer_losses for number, step in steps.items()},
        "output": output.getvalue(),
    }


def tensors_of(folder):
    """Name -> values of the newest checkpoint in a folder, optimizer states included."""
    catalog = open_checkpoint(find_checkpoint(Path(folder)), spec_of)
    with TensorReader() as reader:
        return {name: reader.read(one) for name, one in catalog.tensors.items()}
