# SPDX-License-Identifier: Apache-2.0
"""What tests of the keys of the toolkit and of MindFormers share."""

from pathlib import Path

from mindspeed_ms.planning.parameters import chunk_parameters
from mindspeed_ms.toolkit.mapping.parallel import World

CONFIGS = Path(__file__).parents[1] / "configs" / "gpt2"
FOUR = World(size=4)


def flat(mapped):
    """Dotted field -> value."""
    return {f"{s}.{name}": v for s, values in mapped.sections.items() for name, v in values.items()}


def parameters(config):
    return sum(parameter.size for parameter in chunk_parameters(config, 0, 0))
