# SPDX-License-Identifier: Apache-2.0
"""What tests of command lines share."""

from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.from_args import (
    init_configs_from_args,
)

BF16, FP16, FP32 = "bfloat16", "float16", "float32"
MODEL, TRAIN, DATA = "model_config.", "training_config.", "dataset_config."
OPTIM, PARALLEL = "optimizer_config.", "parallel_config."
SIZES = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 "
    "--max-position-embeddings 64 --micro-batch-size 2 --padded-vocab-size 512 --lr 1e-3"
).split()


def config_of(*words, world_size=None):
    args = parse_args([*SIZES, *words])
    if world_size:
        validate_args(args, world_size)
    return init_configs_from_args(args)


def read(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


CP2 = "--context-parallel-size 4"
VPP = "--pipeline-model-parallel-size 2 --virtual-pipeline-model-parallel-size 2"
