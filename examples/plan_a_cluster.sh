#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Plan a run on devices that you do not have: does it fit, what does it send, which layout is fastest?
#   bash examples/plan_a_cluster.sh [WORLD_SIZE] [DEVICE_MEMORY_GIB] [YAML]
#   bash examples/plan_a_cluster.sh 64 32 configs/llama2_7b.yaml
set -euo pipefail
cd "$(dirname "$0")/.."
world=${1:-64} memory=${2:-64} yaml=${3:-configs/llama2_7b.yaml}

# The layout as the file has it, then up to ten others of the same model and batch, fastest first.
python pretrain_gpt.py --yaml "$yaml" --dry-run --world-size "$world" --device-memory "$memory" --suggest

# What the distributed optimizer saves is one line of the memory table.
python pretrain_gpt.py --yaml "$yaml" --dry-run --world-size "$world" --device-memory "$memory" --use-distributed-optimizer
