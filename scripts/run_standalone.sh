#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train, finetune, evaluate or predict as a configuration file says, on one device.
#   bash run_standalone.sh ../configs/gpt2/run_gpt2.yaml 0 train
# Log: ./output/log/rank_0/mindformer.log. WAIT=1 waits for the end and returns its status.

if [ $# != 3 ]; then
  echo "Usage Help: bash run_standalone.sh [CONFIG_PATH] [DEVICE_ID] [RUN_MODE]"
  exit 1
fi

fail() { echo "error: $1"; exit 1; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=$1 device=$2 mode=$3
[[ $config = /* ]] || config=$(realpath -m "$PWD/$config")
[ -f "$config" ] || fail "config_path=$config is not a file"
[[ $device =~ ^[0-9]+$ ]] || fail "device_id=$device is not a number"
case $mode in
  train | finetune | eval | predict) ;;
  *) fail "run_mode=$mode is not one of train, finetune, eval, predict" ;;
esac

ulimit -u unlimited 2>/dev/null
export DEVICE_ID=$device MINDSPEED_MS_LAUNCH_DIR=$PWD
mkdir -p ./mf_standalone ./output/log/rank_0
echo "start training for device $DEVICE_ID"
(
  cd ./mf_standalone && env >env.log &&
    exec python "${here%/*}/run_mindformer.py" --config="$config" --use_parallel=False --run_mode="$mode"
) &>./output/log/rank_0/mindformer.log &

[ "${WAIT:-0}" = 1 ] || exit 0
trap 'kill $! 2>/dev/null' INT TERM
wait $!
