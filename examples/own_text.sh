#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Pre-train from text of your own: a folder of .txt files -> tokens -> model -> curves -> new text.
#   bash examples/own_text.sh FOLDER OUTPUT [FLAGS OF pretrain_gpt.py ...]
#   bash examples/own_text.sh data/austen/text output/own_text
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "Usage: bash examples/own_text.sh FOLDER OUTPUT [FLAGS ...]" >&2; exit 2; }
texts=$1 output=$2
shift 2
mkdir -p "$output"

# 1. One JSON object per document. Here a document is a file; cut yours where one thing ends.
python - "$texts" "$output/corpus.jsonl" <<'PYTHON'
import json, pathlib, sys

with open(sys.argv[2], "w", encoding="utf-8") as corpus:
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.txt")):
        corpus.write(json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n")
PYTHON

# 2. A tokenizer of this text. Newlines are a piece of their own, so that none is lost.
python - "$output/corpus.jsonl" "$output/tok" <<'PYTHON'
import json, sys

import sentencepiece

texts = [json.loads(line)["text"] for line in open(sys.argv[1], encoding="utf-8")]
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=(line for text in texts for line in text.splitlines()),
    model_prefix=sys.argv[2], vocab_size=2043, model_type="bpe", character_coverage=1.0,
    normalization_rule_name="identity", remove_extra_whitespaces=False,
    user_defined_symbols=["\n"], minloglevel=2,
)
PYTHON

# 3. Token files, which Megatron reads too.
python tools/preprocess_data.py --input "$output/corpus.jsonl" --output-prefix "$output/corpus" \
  --tokenizer-type SentencePieceTokenizer --tokenizer-model "$output/tok.model" --append-eod

# 4. Train on one rank. With one document per file the whole of it is for training: --split 100,0,0.
python pretrain_gpt.py --yaml configs/austen_gpt.yaml --tensor-model-parallel-size 1 \
  --data-path "$output/corpus_text_document" --tokenizer-model "$output/tok.model" --split 100,0,0 \
  --save "$output/run" --log-file "$output/log.csv" "$@"

# 5. Curves, as a table (log.csv) and, with the extra `report`, as a page; then new text.
python -m tools.report "$output/run"
python tools/generate.py --load "$output/run" --prompt "It was" --max-new-tokens 60 --do-sample --temperature 0.8
