#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run a launch script of Megatron-LM as it is: first what it would need, then two steps of it, made small.
#   bash examples/bring_a_megatron_script.sh [SCRIPT] [FLAGS ...]
# On NPUs leave --scale-down out, and the script trains as it does with Megatron.
set -euo pipefail
cd "$(dirname "$0")/.."
script=${1:-examples/megatron_llama.sh}
shift || true

PATH="$(mindspeed-torchrun --bin-dir):$PATH" # its torchrun is this project's from here on
export PATH
bash "$script" --dry-run "$@"
bash "$script" --scale-down "$@"
