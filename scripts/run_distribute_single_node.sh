#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Start one rank on every device of a range; all ranks of the job are on this host.
#   bash run_distribute_single_node.sh "python task.py --run_mode train" hccl_4p_0123_127.0.0.1.json [0,4] 4
# Logs: ./output/log/rank_R/mindformer.log. WAIT=1 waits for the ranks and returns the first failing status.

if [ $# != 4 ]; then
  echo "Usage Help: bash run_distribute_single_node.sh [EXECUTE_ORDER] [RANK_TABLE_PATH]  [DEVICE_RANGE] [RANK_SIZE] For Multiple Devices In Single Machine"
  exit 1
fi

order=$1 table=$2 range=$3 size=$4
fail() { echo "error: $1"; exit 1; }
require_number() { [[ $2 =~ ^[0-9]+$ ]] || fail "$1=$2 is not a number"; }

[[ $table = /* ]] || table=$(realpath -m "$PWD/$table")
[ -f "$table" ] || fail "RANK_TABLE_FILE=$table is not a file"
range=${range:1:${#range}-2} # without its brackets
start=${range%%,*} end=${range#"${range%%,*}"}
end=${end#,}
require_number start_device "$start"
require_number end_device "$end"
require_number rank_size "$size"
start=$((10#$start)) end=$((10#$end)) # 08 is no octal number
((start < end)) || fail "device range [$range] holds no device, its end is not part of it"

ulimit -u unlimited 2>/dev/null
export RANK_SIZE=$size RANK_TABLE_FILE=$table
for ((i = start; i < end; i++)); do
  export DEVICE_ID=$i RANK_ID=$((i - start))
  echo "start training for rank $RANK_ID, device $DEVICE_ID"
  mkdir -p "./output/log/rank_$RANK_ID"
  bash -c "$order" &>"./output/log/rank_$RANK_ID/mindformer.log" &
done

[ "${WAIT:-0}" = 1 ] || exit 0
trap 'kill $(jobs -p) 2>/dev/null' INT TERM
status=0
for ((i = start; i < end; i++)); do
  wait -n || status=$((status ? status : $?))
done
exit "$status"
