# SPDX-License-Identifier: Apache-2.0
r"""GPT-2's ``pytorch_model.bin`` -> one MindSpore ``.ckpt`` with the names of this project.

python -m mindspeed_ms.toolkit.convert_weight --layers 12 \
    --torch_path pytorch_model.bin --mindspore_path gpt2.ckpt

Neither torch nor MindSpore is needed, and nothing in the file is executed. What else is converted:
``python tools/convert_ckpt convert``, which takes and gives every format.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    import numpy as np

    from mindspeed_ms.files.whole import unfinished_folder
    from mindspeed_ms.formats.catalog import StoredTensor, TensorReader
    from mindspeed_ms.formats.containers import safetensors_file as safetensors
    from mindspeed_ms.formats.containers.torch_file import TensorRef, TorchFile
    from mindspeed_ms.models.families.registry import family_of_type
    from mindspeed_ms.toolkit.launch.command import Parser, user_errors
    from mindspeed_ms.toolkit.paths import require_local
    from mindspeed_ms.training.conversion import ConvertOptions, convert

_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")
"""Masks, which follow from the sizes."""
_HEAD_WIDTH = 64
"""Of every GPT-2 that was published; the file does not tell the number of heads."""


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Tensors of a state dict, by their names without ``transformer.``.

    Raises:
        ValueError: the file is none, or holds anything but tensors of a GPT-2.
    """
    file = TorchFile(path)
    content = file.content
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no state dict; name the pytorch_model.bin of a GPT-2")
    tensors = {}
    for name, value in content.items():
        bare = str(name).removeprefix("transformer.")
        if bare == "lm_head.weight" or _BUFFERS.search(bare):
            continue
        if not isinstance(value, TensorRef):
            raise ValueError(f"{path}: {name} is no tensor; name the pytorch_model.bin of a GPT-2")
        piece = file.whole(value)
        tensors[bare] = StoredTensor(value.shape, piece.dtype, [piece])
    return tensors


def describe(tensors: Mapping[str, StoredTensor], layers: int, heads: int | None) -> dict[str, Any]:
    """What ``config.json`` would say of these tensors.

    Raises:
        ValueError: they are no GPT-2, or one of another size.
    """
    if not {"wte.weight", "wpe.weight"} <= tensors.keys():
        raise ValueError("the file has no wte.weight and wpe.weight; only GPT-2 is converted")
    found = {int(name.split(".")[1]) for name in tensors if re.match(r"h\.\d+\.", name)}
    if len(found) != layers:
        raise ValueError(
            f"--layers is {layers}, but the file has {len(found)} layers; give --layers "
            f"{len(found)}"
        )
    rows, hidden = tensors["wte.weight"].shape
    if heads is None and hidden % _HEAD_WIDTH:
        raise ValueError(
            f"the file does not tell the number of heads, and {hidden} is no multiple of "
            f"{_HEAD_WIDTH}; give --heads"
        )
    inner = tensors["h.0.mlp.c_fc.weight"].shape[1] if "h.0.mlp.c_fc.weight" in tensors else None
    positions = tensors["wpe.weight"].shape[0]
    return {
        "model_type": "gpt2",
        "vocab_size": rows,
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads or hidden // _HEAD_WIDTH,
        "n_positions": positions,
        "n_ctx": positions,
        "n_inner": inner,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    }


def convert_weight(torch_path: Path, mindspore_path: Path, config: Mapping[str, Any]) -> None:
    """Write the ``.ckpt``; it appears when it is complete.

    Raises:
        ValueError: tensors are missing, left over or of another shape than ``config`` says.
    """
    tensors = read_tensors(torch_path)
    with unfinished_folder(mindspore_path.parent, mindspore_path.name) as folder:
        between, after = folder / "model", folder / "ckpt"
        between.mkdir()
        (between / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with TensorReader() as reader:
            entries = [
                safetensors.Entry(name, one.dtype, one.shape, partial(_read, reader, one))
                for name, one in tensors.items()
            ]
            safetensors.write_file(between / "model.safetensors", entries, {"format": "pt"})
        options = ConvertOptions(to="mindspore", make_vocab_size_divisible_by=1)
        convert(between, after, options)
        (written,) = after.glob("rank_0/*.ckpt")
        os.replace(written, mindspore_path)


def _read(reader: TensorReader, tensor: StoredTensor) -> np.ndarray:
    return reader.read(tensor)


def name_map(config: Mapping[str, Any]) -> Iterator[str]:
    """Lines ``theirs -> ours [shape of theirs]``."""
    family = family_of_type("gpt2")
    for place in family.places_of(family.config(config), config["vocab_size"]):
        yield f"{place.theirs} -> {place.name} {list(place.shape)}"


def main(words: Sequence[str] | None = None) -> int:
    """Convert as the command line says; return the exit status."""
    parser = Parser(
        prog="convert_weight",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--layers", type=int, required=True, help="layers of the model")
    parser.add_argument("--torch_path", required=True, help="pytorch_model.bin")
    parser.add_argument("--mindspore_path", required=True, help="the .ckpt to write")
    parser.add_argument("--heads", type=int, help="attention heads; default: of 64 elements each")
    with user_errors("convert_weight"):
        given = parser.parse_args(words)
        for key in ("torch_path", "mindspore_path"):
            require_local(getattr(given, key), f"--{key}")
        source, target = Path(given.torch_path), Path(given.mindspore_path)
        if not source.is_file():
            raise ValueError(f"--torch_path {source}: there is no such file; check the path")
        config = describe(read_tensors(source), given.layers, given.heads)
        convert_weight(source, target, config)
        sys.stdout.write("\n".join([*name_map(config), f"written: {target}", ""]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
