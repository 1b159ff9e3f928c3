# SPDX-License-Identifier: Apache-2.0
"""Record what ``transformers`` makes of the cases in ``tokenizer_cases.py``.

``python tests/record_tokenizers.py`` writes ``tests/data/tokenizers/expected.json.gz``; it needs
``transformers`` 5.24 and neither MindSpore nor this package.
"""

import argparse
import gzip
import hashlib
import json
import logging
import tempfile
import warnings
from pathlib import Path

import chat_cases
import tokenizer_cases as cases


def digest(value):
    """Eight characters that stand for a result."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def outcome(function):
    """A result as JSON; the word ``error`` where there is none."""
    try:
        result = function()
    except Exception:  # noqa: BLE001  (whatever goes wrong is the outcome)
        return "error"
    if not hasattr(result, "items"):
        return result
    return {name: getattr(value, "tolist", lambda v=value: v)() for name, value in result.items()}


def of_texts(tokenizer, texts):
    """Ids and texts again, as digests; the first few in full."""
    rows = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        bare = tokenizer.encode(text, add_special_tokens=False)
        rows.append(
            [
                ids,
                bare,
                tokenizer.decode(ids),
                tokenizer.decode(ids, skip_special_tokens=True),
                tokenizer.convert_ids_to_tokens(ids),
            ]
        )
    return {"digests": [digest(row) for row in rows], "first": rows[:12]}


def of_tokenizer(tokenizer):
    """Everything that is compared of one tokenizer."""
    ids = tokenizer("Ada finds <s> a lamp")["input_ids"]
    found = {
        "special_tokens_map": tokenizer.special_tokens_map,
        "all_special_tokens": tokenizer.all_special_tokens,
        "all_special_ids": tokenizer.all_special_ids,
        "vocab": digest(sorted(tokenizer.get_vocab().items())),
        "added": sorted(tokenizer.get_added_vocab().items()),
        "sizes": [len(tokenizer), tokenizer.vocab_size, min(tokenizer.model_max_length, 10**9)],
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
        "extra": tokenizer.num_special_tokens_to_add(),
        "unknown": tokenizer.convert_tokens_to_ids(["no such token", "a"]),
        "tokens": tokenizer.tokenize("Ada finds <s> a lamp"),
        "mask": tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True),
        "string": tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens(ids)),
        "batch_decode": tokenizer.batch_decode([ids, ids[:2]]),
        "cleaned": tokenizer.decode(
            tokenizer.encode("it ' s . , isn n't ?"), clean_up_tokenization_spaces=True
        ),
        "calls": {
            name: outcome(lambda arguments=arguments: tokenizer(**arguments))
            for name, arguments in cases.calls().items()
        },
        "texts": of_texts(tokenizer, cases.texts()),
    }
    found["padded"] = outcome(
        lambda: tokenizer.pad([{"input_ids": [1, 2]}, {"input_ids": [3]}], max_length=9)
    )
    # What changes the tokenizer comes last.
    tokenizer.add_tokens(["<plain>", "lamp"])
    tokenizer.add_special_tokens({"cls_token": "<cls>", "extra_special_tokens": ["<x>", "lamp"]})
    tokenizer.mask_token = "<plain>"
    tokenizer.eos_token_id = 5
    changed = tokenizer("<cls> lamp<x>lamps <plain>")["input_ids"]
    found["changed"] = [
        changed,
        tokenizer.decode(changed, skip_special_tokens=True),
        tokenizer.special_tokens_map,
        tokenizer.all_special_ids,
        tokenizer.mask_token_id,
        len(tokenizer),
    ]
    return found


def record():
    """Results of every kind."""
    from transformers import AutoTokenizer
    from transformers.utils import get_json_schema

    found = {}
    for name, make in cases.KINDS.items():
        folder = Path(tempfile.mkdtemp())
        make(folder)
        found[name] = of_tokenizer(AutoTokenizer.from_pretrained(folder))
    folder = Path(tempfile.mkdtemp())
    cases.generic_json(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, bos_token="<s>")
    found["chat"] = {"written": chat_cases.written(tokenizer)}
    found["chat"]["encoded"] = chat_cases.encoded(tokenizer)
    found["chat"]["sanitized"] = chat_cases.sanitized(tokenizer)
    folder = Path(tempfile.mkdtemp())
    cases.llama(folder)
    found["chat"]["sanitized pieces"] = chat_cases.sanitized(AutoTokenizer.from_pretrained(folder))
    found["schemas"] = [get_json_schema(chat_cases.weather), get_json_schema(chat_cases.nothing)]
    return found


def main():
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default=str(cases.EXPECTED))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    text = json.dumps(record(), separators=(",", ":"))
    # No time stamp: the same results make the same file.
    Path(arguments.output).write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
