#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Go on training a model of Hugging Face's hub, and give back a folder that transformers opens.
#   bash examples/continue_from_hugging_face.sh MODEL_FOLDER OUTPUT [FLAGS OF pretrain_gpt.py ...]
# MODEL_FOLDER is a snapshot: config.json, safetensors, tokenizer. The sizes come from its config.json.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "Usage: bash examples/continue_from_hugging_face.sh MODEL_FOLDER OUTPUT [FLAGS ...]" >&2; exit 2; }
model=$1 output=$2
shift 2
mkdir -p "$output"

# 1. The text in the model's own tokens. Put your corpus here.
python - data/austen/text "$output/corpus.jsonl" <<'PYTHON'
import json, pathlib, sys

with open(sys.argv[2], "w", encoding="utf-8") as corpus:
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.txt")):
        corpus.write(json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n")
PYTHON
python tools/preprocess_data.py --input "$output/corpus.jsonl" --output-prefix "$output/corpus" \
  --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$model" --append-eod

# 2. --finetune takes the weights and nothing else: iteration 0, a fresh optimizer, a schedule of ours.
python pretrain_gpt.py --load "$model" --finetune --use-checkpoint-args \
  --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$model" \
  --data-path "$output/corpus_text_document" --split 100,0,0 --seq-length 64 --max-position-embeddings 64 \
  --micro-batch-size 4 --global-batch-size 8 --train-iters 20 --lr 2e-4 --lr-decay-style cosine \
  --lr-warmup-iters 2 --min-lr 2e-5 --eval-iters 0 --save "$output/run" --save-interval 20 --log-interval 1 "$@"

# 3. Back to the hub's format, with config.json and the tokenizer's files.
python tools/convert_ckpt convert "$output/run" "$output/for_hugging_face" --to huggingface
