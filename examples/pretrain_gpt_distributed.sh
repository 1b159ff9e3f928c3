#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train the preset "gpt" of the toolkit on the first devices of this host, one rank a device.
#   bash examples/pretrain_gpt_distributed.sh 2 1 data/tiny --hidden_size=64 --num_layers=2 --num_heads=4
# The ranks share the batch. For other layouts change --parallel_mode below to data_parallel, or add sizes:
# --data_parallel, --model_parallel and --pipeline_stage, whose product is the number of devices.
# Logs: ./output/log/rank_R/mindformer.log. WAIT=1 waits for the ranks and returns the first failing status.

usage() {
  echo "Usage: bash examples/pretrain_gpt_distributed.sh DEVICE_NUM EPOCH_SIZE DATA_DIR [--key=value ...]"
  echo "For example: bash examples/pretrain_gpt_distributed.sh 8 40 /path/to/data --data_parallel=4 --model_parallel=2"
  exit 1
}
[ $# -ge 3 ] || usage
DEVICE_NUM=$1 EPOCH_SIZE=$2 DATA_DIR=$3
shift 3
for word in "$@"; do [[ $word = --*=* ]] || usage; done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
python -m mindspeed_ms.toolkit.launch.hccl_tools --device_num "[0,$DEVICE_NUM)" --server_ip 127.0.0.1 || exit 1
table=(hccl_"$DEVICE_NUM"p_*_127.0.0.1.json)
printf -v run '%q ' python -m mindspeed_ms.toolkit.run \
  --auto_model="gpt" \
  --epoch_size="$EPOCH_SIZE" \
  --train_data_path="$DATA_DIR" \
  --optimizer="adam" \
  --parallel_mode=semi_auto_parallel \
  --data_parallel="$DEVICE_NUM" \
  "$@"
exec bash "$root/scripts/run_distribute_single_node.sh" "exec $run" "${table[0]}" "[0,$DEVICE_NUM]" "$DEVICE_NUM"
