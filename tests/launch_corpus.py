# SPDX-License-Identifier: Apache-2.0
"""Launch scripts of Megatron and MindSpeed, with values for their shell variables."""

import gzip
import json
from pathlib import Path

from mindspeed_ms.training.flags import BY_NAME

DATA = Path(__file__).parent / "data"
SCRIPTS = json.loads(gzip.decompress((DATA / "launch_commands.json.gz").read_bytes()))
"""Name of a script -> the words of its command."""
PUBLISHED = json.loads((DATA / "published_commands.json").read_text())
"""Scripts of MindSpeed-LLM and ModelLink, whose variables have their values -> command."""
FORKS = json.loads((DATA / "fork_commands.json").read_text())
"""Scripts of Megatron's forks and of MindSpeed's own tests -> command."""
PLACEHOLDERS = {
    "--pipeline-model-parallel-size": "2",
    "--num-layers": "8",
    "--num-attention-heads": "8",
    "--hidden-size": "1024",
    "--ffn-hidden-size": "1024",
    "--seq-length": "1024",
    "--max-position-embeddings": "1024",
    "--yaml-cfg": str(DATA / "megatron_layout.yaml"),
}
"""Flag -> value for a shell variable of a script. Other numbers: 1."""


def expanded(words):
    """A command line with its shell variables replaced."""
    result, name = [], ""
    for word in words:
        name = word.partition("=")[0] if word.startswith("--") else name
        row = BY_NAME[name]
        if word.startswith(("$", "<")) or "${" in word:
            if name in PLACEHOLDERS:
                word = PLACEHOLDERS[name]
            elif row.choices:
                word = str(row.choices[-1])
            elif row.type in (int, float):
                word = "1"
        result.append(word)
    return result
