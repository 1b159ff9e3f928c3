# SPDX-License-Identifier: Apache-2.0
"""Write the small corpus that ships with the repository: log entries of an invented observatory.

Usage: python tools/make_tiny_corpus.py OUTPUT_DIRECTORY

Writes tiny.jsonl (text) and tok.model (SentencePiece). The text is the same on every machine; the
tokenizer depends on the version of sentencepiece it is trained with.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from mindspeed_ms.data.tokenizers.sentencepiece_training import train_sentencepiece
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

NUM_DOCUMENTS = 2000
VOCAB_SIZE = 507  # five special tokens of SentencePieceTokenizer make 512

SEED = 20240229
KEEPERS = "Ilse Bram Noor Tomas Wren Odile Yusuf Petra Anselm Mirte".split()
BODIES = "the moon,a comet,the red star,a slow satellite,the double star,a faint nebula".split(",")
QUARTERS = "north,north-east,east,south-east,south,south-west,west,north-west".split(",")
SKIES = "clear,hazy,half covered,covered,clear after rain".split(",")
TOOLS = "the small mirror,the long telescope,the brass sextant,the old camera".split(",")
FAULTS = "a loose screw,a stiff hinge,dust on the glass,a flat battery".split(",")
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen"
).split()


def _sky(rng: random.Random, keeper: str) -> str:
    sky = rng.choice(SKIES)
    action = "stays inside" if sky == "covered" else "opens the dome"
    return f"The sky is {sky}, so {keeper} {action}."


def _sighting(rng: random.Random, keeper: str) -> str:
    place = rng.randrange(len(QUARTERS))
    later = QUARTERS[(place + 2) % len(QUARTERS)]
    return (
        f"At {NUMBERS[rng.randint(6, 9)]} o'clock {keeper} sees {rng.choice(BODIES)} in the "
        f"{QUARTERS[place]}; two hours later it stands in the {later}."
    )


def _count(rng: random.Random, keeper: str) -> str:
    first, second = rng.randint(0, 9), rng.randint(0, 9)
    return (
        f"{keeper} counts {NUMBERS[first]} meteors before midnight and {NUMBERS[second]} after, "
        f"{NUMBERS[first + second]} in all."
    )


def _repair(rng: random.Random, keeper: str) -> str:
    tool, fault = rng.choice(TOOLS), rng.choice(FAULTS)
    remedy = {
        "a loose screw": "tightens it",
        "a stiff hinge": "oils it",
        "dust on the glass": "wipes it away",
        "a flat battery": "charges it",
    }[fault]
    return f"{keeper} finds {fault} at {tool} and {remedy}."


def _handover(rng: random.Random, keeper: str) -> str:
    following = rng.choice([name for name in KEEPERS if name != keeper])
    return f"In the morning {keeper} gives the key to {following}."


def texts(num_documents: int = NUM_DOCUMENTS, seed: int = SEED) -> Iterator[str]:
    """Entries of one night each: the night's number, the keeper's deeds, the handover."""
    rng = random.Random(seed)
    deeds = (_sighting, _count, _repair)
    for night in range(1, num_documents + 1):
        keeper = rng.choice(KEEPERS)
        lines = [f"Night {night}. {keeper} keeps the watch.", _sky(rng, keeper)]
        lines += [rng.choice(deeds)(rng, keeper) for _ in range(rng.randint(1, 4))]
        lines.append(_handover(rng, keeper))
        yield " ".join(lines)


def write_jsonl(path: Path) -> None:
    """Write the text, one JSON object per line."""
    with open(path, "w", encoding="utf-8") as stream:
        for text in texts():
            stream.write(json.dumps({"text": text}) + "\n")


def train_tokenizer(path: Path) -> None:
    """Train the SentencePiece model on the text."""
    model = train_sentencepiece(texts(), VOCAB_SIZE, character_coverage=1.0, num_threads=1)
    path.write_bytes(model)


def main(argv: Sequence[str] | None = None) -> None:
    """Write both files."""
    parser = Parser.of(__doc__)
    parser.add_argument("output", type=Path, help="directory; created when missing")
    output = parser.parse_args(argv).output
    with user_errors():
        output.mkdir(parents=True, exist_ok=True)
        write_jsonl(output / "tiny.jsonl")
        train_tokenizer(output / "tok.model")


if __name__ == "__main__":
    main()
