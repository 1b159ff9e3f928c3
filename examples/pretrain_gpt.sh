#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train the preset "gpt" of the toolkit on one device.
#   bash examples/pretrain_gpt.sh 0 1 data/tiny --hidden_size=64 --num_layers=2 --num_heads=4
# Log: ./output/log/rank_0/mindformer.log. WAIT=1 waits for the end and returns its status.

usage() {
  echo "Usage: bash examples/pretrain_gpt.sh DEVICE_ID EPOCH_SIZE DATA_DIR [--key=value ...]"
  echo "For example: bash examples/pretrain_gpt.sh 0 40 /path/to/data"
  exit 1
}
[ $# -ge 3 ] || usage
DEVICE_ID=$1 EPOCH_SIZE=$2 DATA_DIR=$3
shift 3
for word in "$@"; do [[ $word = --*=* ]] || usage; done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export DEVICE_ID PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
log=./output/log/rank_0/mindformer.log
mkdir -p "${log%/*}"
echo "start training for device $DEVICE_ID, log: $log"
python -m mindspeed_ms.toolkit.run \
  --auto_model="gpt" \
  --epoch_size="$EPOCH_SIZE" \
  --train_data_path="$DATA_DIR" \
  --optimizer="adam" \
  --parallel_mode=stand_alone \
  "$@" &>"$log" &

[ "${WAIT:-0}" = 1 ] || exit 0
trap 'kill $! 2>/dev/null' INT TERM
wait $!
