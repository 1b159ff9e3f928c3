#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train, finetune, evaluate or predict as a configuration file says, one rank a device.
#   bash run_distribute.sh hccl_8p_01234567_127.0.0.1.json ../configs/gpt2/run_gpt2.yaml [0,8] train
#   bash run_distribute.sh hccl_4s_32p.json ../configs/gpt2/run_gpt2_13b.yaml [8,16] train 32    # second of four hosts
# Every rank works in a folder of its own, ./mf_parallelN; logs and WAIT=1 as in run_distribute_single_node.sh.

if [ $# != 4 ] && [ $# != 5 ]; then
  echo "Usage Help: bash run_distribute.sh [RANK_TABLE_FILE] [CONFIG_PATH] [DEVICE_RANGE] [RUN_MODE] For Multiple Devices In Single Machine"
  echo "Usage Help: bash run_distribute.sh [RANK_TABLE_FILE] [CONFIG_PATH] [DEVICE_RANGE] [RUN_MODE] [RANK_SIZE] For Multiple Devices In Multiple Machines"
  exit 1
fi

fail() { echo "error: $1"; exit 1; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
table=$1 config=$2 range=$3 mode=$4 size=$5
[[ $table = /* ]] || table=$(realpath -m "$PWD/$table")
[[ $config = /* ]] || config=$(realpath -m "$PWD/$config")
[ -f "$table" ] || fail "RANK_TABLE_FILE=$table is not a file"
[ -f "$config" ] || fail "config_path=$config is not a file"
case $mode in
  train | finetune | eval | predict) ;;
  *) fail "run_mode=$mode is not one of train, finetune, eval, predict" ;;
esac

script=run_distribute_multi_node.sh number='$RANK_ID'
if [ $# = 4 ]; then
  script=run_distribute_single_node.sh number='$DEVICE_ID'
  bounds=${range:1:${#range}-2}
  size=$((${bounds#*,} - ${bounds%%,*})) 2>/dev/null || size=0 # the next script says what is wrong
fi
export MINDSPEED_MS_LAUNCH_DIR=$PWD # what relative paths in the configuration are relative to
printf -v run 'python %q --config=%q --use_parallel=True --run_mode=%q' "${here%/*}/run_mindformer.py" "$config" "$mode"
exec bash "$here/$script" "mkdir -p mf_parallel$number && cd mf_parallel$number && env > env.log && exec $run" "$table" "$range" "$size"
