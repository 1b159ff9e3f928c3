# SPDX-License-Identifier: Apache-2.0
"""Rows of the guide's mapping tables that change something one can see: flag -> effect.

``test_arguments`` has all 124 rows as flag -> field; here the field is followed to the model, the
gradient buffers, the optimizer, the schedules and the batches of a one-rank run.
"""

import numpy as np
import pytest
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.num_microbatches_calculator import get_num_microbatches
from mindspeed_ms.core.optimizer import (
    OptimizerParamScheduler,
    get_grad_scaler,
    get_megatron_optimizer,
)
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.engine.model_chunks import get_model
from mindspeed_ms.legacy.data.data_samplers import build_pretraining_data_loader
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.recompute_plan import recompute_plan
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.from_args import init_configs_from_args
from mindspeed_ms.training.initialize import set_up_run

BASE = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 "
    "--max-position-embeddings 16 --micro-batch-size 2 --global-batch-size 8 --train-iters 8 "
    "--padded-vocab-size 128 --lr 1e-3 --logging-level 30"
)


class Run:
    """A run of one rank, ready to train, built when it is asked for."""

    def __init__(self, words):
        args = validate_args(parse_args(f"{BASE} {words}".split()), 1)
        self.config = init_configs_from_args(args)
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        set_up_run(self.config)

    @property
    def chunk(self):
        def provider(pre_process, post_process):
            return GPTModel(self.config.model_config, pre_process=pre_process)

        (chunk,) = get_model(provider, self.config)
        return chunk

    @property
    def params(self):
        return {
            name.removeprefix("language_model.").removeprefix("encoder."): param
            for name, param in named_parameters(self.chunk.module)
        }

    @property
    def layer(self):
        return next(iter(self.chunk.module.language_model.encoder.layers))

    @property
    def optimizer(self):
        return get_megatron_optimizer(self.config.optimizer_config, [self.chunk])

    @property
    def scheduler(self):
        return OptimizerParamScheduler.from_config(
            self.config.training_config, self.config.optimizer_config, 8
        )

    @property
    def plan(self):
        model, parallel = self.config.model_config, self.config.parallel_config
        return recompute_plan(model, parallel, layer_placement(model, parallel), (0, 0))


@pytest.fixture(scope="module", autouse=True)
def groups():
    yield
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()


def shape(name):
    return lambda run: tuple(run.params[name].shape)


def std(name):
    return lambda run: float(np.std(memory.as_numpy(run.params[name])))


def lr_after(steps):
    def effect(run):
        scheduler = run.scheduler
        scheduler.step(steps * 8)
        return round(scheduler.get_lr(), 9)

    return effect


QKV, OUT = "layers.0.attention.qkv_proj", "layers.0.attention.out_proj"
EMBEDDING = "embedding.word_embeddings.weight"
UNTIED = "--untie_embeddings_and_output_weights"
GQA = "--group_query_attention --num_query_groups 2"
EFFECTS = [
    ("padded_vocab_size", "--padded_vocab_size 256", shape(EMBEDDING), (256, 32)),
    ("hidden_size", "--hidden_size 64", shape(EMBEDDING), (128, 64)),
    ("seq_length", "--seq_length 8", lambda run: run.config.model_config.seq_length, 8),
    ("num_layers", "--num_layers 3", lambda run: "layers.2.mlp.mapping.weight" in run.params, True),
    (
        "position_embedding_type",
        "--position_embedding_type rope",
        lambda run: "embedding.position_embeddings.weight" in run.params,
        False,
    ),
    ("init_method_std", "--init_method_std 0.5", std(f"{QKV}.weight"), pytest.approx(0.5, rel=0.1)),
    (
        "normalization",
        "--normalization RMSNorm",
        lambda run: "layers.0.input_norm.weight" in run.params,
        True,
    ),
    ("norm_epsilon", "--norm_epsilon 1e-3", lambda run: run.layer.input_norm.eps, 1e-3),
    ("group_query_attention", GQA, shape(f"{QKV}.weight"), (64, 32)),
    ("num_attention_heads", "--num_attention_heads 8", lambda run: run.layer.attention.head_dim, 4),
    (
        "num_query_groups",
        "--group_query_attention --num_query_groups 1",
        shape(f"{QKV}.weight"),
        (48, 32),
    ),
    (
        "attention_dropout",
        "--attention_dropout 0.3",
        lambda run: run.layer.attention.core_attention.dropout_rate,
        0.3,
    ),
    ("ffn_hidden_size", "--ffn_hidden_size 48", shape("layers.0.mlp.mapping.weight"), (48, 32)),
    ("hidden_dropout", "--hidden_dropout 0.2", lambda run: run.layer.hidden_dropout, 0.2),
    (
        "untie_embeddings_and_output_weights",
        UNTIED,
        lambda run: "output_layer.weight" in {n.rpartition("model.")[2] for n in run.params},
        True,
    ),
    (
        "recompute_granularity",
        "--recompute_granularity selective",
        lambda run: set(run.plan.layers[0].modules),
        {"core_attn"},
    ),
    (
        "recompute_num_layers",
        "--recompute_granularity full --recompute_method block --recompute_num_layers 1",
        lambda run: [group.is_recomputed for group in run.plan.groups],
        [True, False],
    ),
    (
        "recompute_method",
        "--recompute_granularity full --recompute_method uniform --recompute_num_layers 2",
        lambda run: [group.layers for group in run.plan.groups],
        [(0, 1)],
    ),
    (
        "recompute",
        "--recompute [1]",
        lambda run: [group.is_recomputed for group in run.plan.groups],
        [True, False],
    ),
    (
        "select_recompute",
        "--select_recompute [1]",
        lambda run: {"core_attn", "mlp_act"} <= run.plan.layers[0].modules,
        True,
    ),
    (
        "select_comm_recompute",
        "--select_comm_recompute [1]",
        lambda run: [run.plan.layers[index].keeps_gathered for index in range(2)],
        [False, True],
    ),
    (
        "add_qkv_bias",
        "--disable-bias-linear --add_qkv_bias",
        lambda run: (f"{QKV}.bias" in run.params, f"{OUT}.bias" in run.params),
        (True, False),
    ),
    (
        "add_dense_bias",
        "--disable-bias-linear --add_dense_bias",
        lambda run: (f"{QKV}.bias" in run.params, f"{OUT}.bias" in run.params),
        (False, True),
    ),
    (
        "add_bias_linear",
        "--add_bias_linear False",
        lambda run: any(".bias" in name for name in run.params),
        False,
    ),
    (
        "use_sandwich_norm",
        "--use_sandwich_norm",
        lambda run: "layers.0.attn_post_norm.gamma" in run.params,
        True,
    ),
    (
        "attn_post_norm_scale",
        "--use_sandwich_norm --attn_post_norm_scale 0.25",
        lambda run: memory.as_numpy(run.params["layers.1.attn_post_norm.gamma"])[0],
        0.25,
    ),
    (
        "ffn_post_norm_scale",
        "--use_sandwich_norm --ffn_post_norm_scale 0.5",
        lambda run: memory.as_numpy(run.params["layers.1.ffn_post_norm.gamma"])[0],
        0.5,
    ),
    (
        "params_dtype",
        "--params_dtype bfloat16 --compute_dtype bfloat16",
        lambda run: run.params[f"{QKV}.weight"].dtype,
        mstype.bfloat16,
    ),
    (
        "embedding_dtype",
        "--embedding_dtype bfloat16",
        lambda run: run.params[EMBEDDING].dtype,
        mstype.bfloat16,
    ),
    (
        "hidden_act",
        "--hidden_act swiglu --ffn_hidden_size 48",
        shape("layers.0.mlp.mapping.weight"),
        (96, 32),
    ),
    (
        "accumulate_allreduce_grads_in_fp32",
        "--params_dtype bfloat16 --compute_dtype bfloat16 --accumulate_allreduce_grads_in_fp32",
        lambda run: {buffer.grads.flat.dtype for buffer in run.chunk.buffers},
        {mstype.float32},
    ),
    ("clip_grad", "--clip_grad 0.25", lambda run: run.optimizer.config.clip_grad, 0.25),
    ("bf16", "--bf16", lambda run: run.params[f"{QKV}.weight"].dtype, mstype.bfloat16),
    ("fp16", "--fp16", lambda run: run.params[f"{QKV}.weight"].dtype, mstype.float16),
    (
        "loss_scale",
        "--fp16 --loss_scale 64",
        lambda run: get_grad_scaler(run.config.training_config).scale,
        64.0,
    ),
    (
        "initial_loss_scale",
        "--fp16 --initial_loss_scale 1024",
        lambda run: get_grad_scaler(run.config.training_config).scale,
        1024.0,
    ),
    (
        "use_distributed_optimizer",
        "--use_distributed_optimizer",
        lambda run: run.chunk.config.is_sharded,
        True,
    ),
    (
        "bucket_size",
        "--overlap_grad_reduce --bucket_size 5000",
        lambda run: len(run.chunk.buffers[0].layout.buckets) > 3,
        True,
    ),
    (
        "overlap_grad_reduce",
        "--overlap_grad_reduce",
        lambda run: run.chunk.config.overlap_grad_reduce,
        True,
    ),
    (
        "enable_mem_align",
        "--enable_mem_align",
        lambda run: {
            slot.start * 4 % 512
            for span in run.chunk.buffers[0].layout.buckets
            for slot in span.slots
        },
        {0},
    ),
    ("micro_batch_size", "--micro_batch_size 4", lambda run: get_num_microbatches(), 2),
    ("adam_beta1", "--adam_beta1 0.7", lambda run: run.optimizer.config.betas, (0.7, 0.999)),
    ("adam_beta2", "--adam_beta2 0.7", lambda run: run.optimizer.config.betas, (0.9, 0.7)),
    ("adam_eps", "--adam_eps 1e-5", lambda run: run.optimizer.config.eps, 1e-5),
    ("lr", "--lr 0.5 --lr_decay_style constant", lr_after(3), 0.5),
    ("lr_decay_style", "--lr_decay_style linear", lr_after(4), 0.0005),
    ("min_lr", "--min_lr 1e-4", lr_after(8), 1e-4),
    ("lr_warmup_iters", "--lr_warmup_iters 4 --lr_decay_style constant", lr_after(1), 0.00025),
    ("lr_decay_iters", "--lr_decay_iters 4", lr_after(2), 0.0005),
    ("weight_decay", "--weight_decay 0.3", lambda run: run.scheduler.get_wd(), 0.3),
    (
        "start_weight_decay",
        "--weight_decay_incr_style linear --start_weight_decay 0.1 --end_weight_decay 0.2",
        lambda run: run.scheduler.get_wd(),
        0.1,
    ),
    ("train_iters", "--train_iters 4", lr_after(2), 0.0005),
]


@pytest.mark.parametrize(
    ("words", "effect", "expected"),
    [row[1:] for row in EFFECTS],
    ids=[row[0] for row in EFFECTS],
)
def test_a_flag_of_the_guide_has_its_effect(words, effect, expected):
    assert effect(Run(words)) == expected


@pytest.mark.parametrize(("value", "sizes"), [("True", [2, 2]), ("False", [2, 2, 1])])
def test_the_remainder_of_the_data_is_dropped_or_not(value, sizes):
    Run(f"--drop_remainder {value} --num-workers 0")
    samples = [{"tokens": np.full(4, index)} for index in range(5)]
    batches = list(build_pretraining_data_loader(samples, 0))
    assert [len(batch["tokens"]) for batch in batches] == sizes


def test_the_seed_decides_the_weights():
    weights = [
        memory.as_numpy(Run(f"--seed {seed}").params[EMBEDDING]).copy() for seed in (1, 1, 2)
    ]
    assert (weights[0] == weights[1]).all() and (weights[0] != weights[2]).any()


def test_every_flag_is_written_once_and_is_of_the_guide():
    names = [row[0] for row in EFFECTS]
    assert len(set(names)) == len(names) >= 50
    for name, words, *_ in EFFECTS:
        assert f"--{name}" in words, name
