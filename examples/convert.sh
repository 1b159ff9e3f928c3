#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One run in every format: Megatron (tensor parallel 2), Hugging Face, MindSpore; what lies where; what differs.
#   bash examples/convert.sh RUN OUTPUT
#   bash examples/convert.sh output/first_run output/converted
# RUN is a checkpoint of any format and layout. Each conversion is verified: both sides compute the same logits.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 2 ] || { echo "Usage: bash examples/convert.sh RUN OUTPUT" >&2; exit 2; }
run=$1 output=$2

python tools/convert_ckpt inspect "$run"
python tools/convert_ckpt convert "$run" "$output/megatron" --to megatron --tensor-model-parallel-size 2
python tools/convert_ckpt convert "$run" "$output/hugging_face" --to huggingface
python tools/convert_ckpt convert "$run" "$output/mindspore" --to mindspore

# And back: through another project's format nothing is lost.
python tools/convert_ckpt convert "$output/megatron" "$output/back"
python tools/convert_ckpt diff "$run" "$output/back"
