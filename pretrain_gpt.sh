#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Pre-train a GPT model with msrun; flags go to pretrain_gpt.py, by default a small GPT on data/austen.
#   bash pretrain_gpt.sh
#   WORKER_NUM=8 bash pretrain_gpt.sh --yaml configs/38BV3/model_38BV3.yaml
# The log of every rank is in msrun_log/worker_*.log; the first rank's, which says what is wrong with
# a command line, and the last one's, with the losses, are shown.
set -euo pipefail
cd "$(dirname "$0")"

export HCCL_BUFFSIZE="${HCCL_BUFFSIZE:-200}"         # MiB of shared buffer between two NPUs
export HCCL_EXEC_TIMEOUT="${HCCL_EXEC_TIMEOUT:-600}" # seconds ranks wait for each other
WORKER_NUM="${WORKER_NUM:-4}"
[ ! -t 1 ] || export MINDSPEED_MS_TERMINAL="${MINDSPEED_MS_TERMINAL-$(readlink /proc/$$/fd/1)}" # where a bar may be drawn
IS_FIRST_RUN=false
[ $# -gt 0 ] || { IS_FIRST_RUN=true && set -- --yaml configs/austen_gpt.yaml; }

START=(msrun --worker_num "$WORKER_NUM" --local_worker_num="$WORKER_NUM"
  --master_port="${MASTER_PORT:-8848}" --log_dir=msrun_log --join=True --cluster_time_out=300
  --tail_worker_log="0$([ "$WORKER_NUM" -eq 1 ] || echo ",$((WORKER_NUM - 1))")" pretrain_gpt.py "$@")
$IS_FIRST_RUN || exec "${START[@]}"

"${START[@]}" &
trap 'kill $!' INT TERM
wait $!
echo "
The curves of this run, as one HTML file:
  python -m tools.report output/first_run
What the model has learned to write:
  python tools/generate.py --load output/first_run --prompt 'Mr. Darcy' --max-new-tokens 60 --do-sample --temperature 0.8"
