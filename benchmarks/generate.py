# SPDX-License-Identifier: Apache-2.0
"""CPU time of a prompt and of a generated token, in turns with ``transformers`` and ``llama.cpp``.

    python benchmarks/generate.py FOLDER --batch 1 8 [--dtype bfloat16] [--int8]
        [--ranks N] [--other PYTHON] [--llama-cpp PYTHON]

measures the model in a folder of Hugging Face. PYTHON is an interpreter with torch and
transformers, or with llama-cpp-python and gguf, for which the same weights are written as a GGUF
file (Llama's form, batch 1). All go on greedily from the same random prompts on one thread, each in
a process of its own; a figure is the least of several turns, since others may use the machine. With
every figure stands the share of memory speed at which the weights of a step are read
(``limit.py``). ``--ranks`` adds as many tensor parallel ranks of one thread each, whose seconds by
the clock count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from limit import limits

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.toolkit.models.auto import AutoModelForCausalLM
from mindspeed_ms.toolkit.models.modeling import PreTrainedModel

TURN = """
def turn(generate, steps):
    import time
    def seconds(count):
        taken = []
        for _ in range(3):
            start = time.process_time()
            generate(count)
            taken.append(time.process_time() - start)
        return min(taken)
    seconds(2)
    first, second = seconds(1), seconds(2)
    print(first, (seconds(steps + 2) - second) / steps)
"""

OTHER = (
    TURN
    + """
import sys, numpy, torch, transformers
torch.set_num_threads(1)
folder, dtype, batch, length, steps = *sys.argv[1:3], *map(int, sys.argv[3:6])
dtype = getattr(torch, dtype)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
top = model.config.vocab_size
ids = torch.tensor(numpy.random.default_rng(0).integers(8, top, (batch, length)))
def generate(count):
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count,
                   min_new_tokens=count, do_sample=False, pad_token_id=0)
turn(generate, steps)
"""
)

LLAMA_CPP = (
    TURN
    + """
import json, sys, numpy, llama_cpp
path, _, batch, length, steps = *sys.argv[1:3], *map(int, sys.argv[3:6])
room = {"n_ctx": length + steps + 8, "n_threads": 1, "n_threads_batch": 1}
model = llama_cpp.Llama(path, verbose=False, **room)
ids = numpy.random.default_rng(0).integers(8, model.n_vocab(), (1, length))[0].tolist()
def generate(count):
    model.reset()
    for index, _ in enumerate(model.generate(ids, temp=0.0, reset=True)):
        if index + 1 == count:
            break
turn(generate, steps)
"""
)

GGUF = """
import json, sys, numpy, gguf
from safetensors import safe_open
folder, target, dtype = sys.argv[1:4]
config = json.load(open(folder + "/config.json"))
assert config["model_type"] == "llama", "only Llama's form is written as GGUF here"
heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
out = gguf.GGUFWriter(target, "llama")
out.add_context_length(config["max_position_embeddings"])
out.add_embedding_length(config["hidden_size"])
out.add_block_count(config["num_hidden_layers"])
out.add_feed_forward_length(config["intermediate_size"])
out.add_head_count(heads)
out.add_head_count_kv(groups)
out.add_layer_norm_rms_eps(config["rms_norm_eps"])
out.add_rope_freq_base(theta)
out.add_vocab_size(config["vocab_size"])
out.add_tokenizer_model("llama")
size = config["vocab_size"]
out.add_token_list(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, size))])
out.add_token_scores([0.0] * size)
out.add_token_types([2, 3, 3, *[1] * (size - 3)])
names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm"}
whole = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight",
         "model.norm.weight": "output_norm.weight"}
kind = {"float32": gguf.GGMLQuantizationType.F32, "bfloat16": gguf.GGMLQuantizationType.BF16,
        "float16": gguf.GGMLQuantizationType.F16}[dtype]
with safe_open(folder + "/model.safetensors", "numpy") as file:
    for name in file.keys():
        value = file.get_tensor(name).astype(numpy.float32)
        if name in whole:
            own = whole[name]
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            own = f"blk.{layer}.{names[part]}.weight"
            if part.endswith(("q_proj", "k_proj")):  # pairs side by side, as that format rotates
                count = heads if part.endswith("q_proj") else groups
                pairs = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2)
                value = pairs.reshape(value.shape)
        if value.ndim == 1:
            out.add_tensor(own, value)
        else:
            packed = gguf.quants.quantize(value, kind)
            out.add_tensor(own, packed, raw_dtype=kind)
out.write_header_to_file(); out.write_kv_data_to_file(); out.write_tensors_to_file(); out.close()
"""


def own_turn(folder: str, dtype: str, sizes: Sequence[int], in_int8: bool, ranks: int) -> str:
    """This side's figures, the bytes of the weights that a step reads, and figures by the clock.

    Args:
        folder: the model.
        dtype: of weights and computation.
        sizes: rows, tokens of a prompt, steps.
        in_int8: with weights as eight bits.
        ranks: tensor parallel ranks, of which this process is one.
    """
    batch, length, steps = sizes
    layout: dict[str, Any] = {"tensor_model_parallel_size": ranks} if ranks > 1 else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **layout)
    model.decodes_in_int8 = in_int8
    ids = np.random.default_rng(0).integers(8, model.config.vocab_size, (batch, length))

    def seconds(count: int) -> np.ndarray:
        """Of processor time, and by the clock."""
        taken = []
        for _ in range(3):
            start = time.process_time(), time.perf_counter()
            model.generate(ids, max_new_tokens=count, min_new_tokens=count, pad_token_id=0)
            taken.append((time.process_time() - start[0], time.perf_counter() - start[1]))
        return np.min(taken, axis=0)

    seconds(2)
    first, second = seconds(1), seconds(2)  # neither the prompt nor what prepares the steps counts
    step = (seconds(steps + 2) - second) / steps
    return f"{first[0]} {step[0]} {step_bytes(model, in_int8)} {first[1]} {step[1]}"


def step_bytes(model: PreTrainedModel, in_int8: bool) -> int:
    """Bytes of the matrices that a step reads: all but a table of tokens that is no head.

    All experts count, also those that no row chooses.
    """
    matrices = [
        param
        for param in model.get_parameters()
        if param.ndim == 2 and "position_embeddings" not in param.name
    ]
    has_head = any("output_layer" in param.name for param in matrices)
    if has_head:
        matrices = [param for param in matrices if "word_embeddings" not in param.name]
    if in_int8:
        return sum(memory.num_elements(param) for param in matrices)
    return sum(memory.num_bytes(param) for param in matrices)


def _run(command: Sequence[str]) -> list[float]:
    command = ["env", "OMP_NUM_THREADS=1", "GLOG_v=3", *command]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)[:300]} failed:\n{result.stderr[-2000:]}")
    return [float(word) for word in result.stdout.splitlines()[-1].split()]


def measure(sides: dict[str, Callable[[], list[float]]], turns: int) -> dict[str, list[float]]:
    """The least of several turns of every side, figure by figure."""
    found: dict[str, list[list[float]]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            found[name].append(side())
    return {
        name: [min(column) for column in zip(*rows, strict=True)] for name, rows in found.items()
    }


def report(found: dict[str, list[float]], batch: int, length: int) -> str:
    """Lines about one batch size."""
    prompt, step, num_bytes, *by_clock = found["here"]
    share = limits(1).share_of_memory(num_bytes / step)
    lines = [
        f"batch {batch}: prompt of {length} {prompt * 1e3:.2f} ms, step {step * 1e3:.3f} ms "
        f"({num_bytes / step / 1e9:.1f} GB/s of weights, {share})"
    ]
    for name, (their_prompt, their_step, *more) in found.items():
        if name.endswith("ranks"):
            lines.append(
                f"  {name}, by the clock: prompt {more[1] * 1e3:.2f} ms, step {more[2] * 1e3:.3f} "
                f"ms; one rank {by_clock[0] * 1e3:.2f} and {by_clock[1] * 1e3:.3f}; processor time "
                f"of a step, each rank {their_step * 1e3:.3f} ms"
            )
        elif name != "here":
            lines.append(
                f"  {name}: prompt {their_prompt * 1e3:.2f} ms, step {their_step * 1e3:.3f} ms; "
                f"here / there {prompt / their_prompt:.2f} and {step / their_step:.2f}"
            )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--int8", action="store_true", help="weights of steps as eight bits, here")
    parser.add_argument("--ranks", type=int, default=1, help="also as many tensor parallel ranks")
    parser.add_argument("--other", help="interpreter with torch and transformers")
    parser.add_argument("--llama-cpp", help="interpreter with llama-cpp-python, gguf, safetensors")
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    sizes = (arguments.length, arguments.steps)
    if arguments.own:
        own_sizes = (arguments.batch[0], *sizes)
        text = own_turn(
            arguments.folder, arguments.dtype, own_sizes, arguments.int8, arguments.ranks
        )
        if comm.get_rank() == 0:
            sys.stdout.write(text + "\n")
        return 0
    kind = f"{arguments.dtype}{', int8 here' if arguments.int8 else ''}"
    sys.stdout.write(f"{limits(1).processor}; {kind}; CPU time, least of {arguments.turns}\n")
    with tempfile.TemporaryDirectory() as temporary:
        for batch in arguments.batch:
            sides = _sides(arguments, batch, Path(temporary) / "model.gguf")
            sys.stdout.write(report(measure(sides, arguments.turns), batch, arguments.length))
    return 0


def _sides(
    arguments: argparse.Namespace, batch: int, gguf: Path
) -> dict[str, Callable[[], list[float]]]:
    """What measures each side, by name."""
    folder, dtype = str(Path(arguments.folder).resolve()), arguments.dtype
    numbers = [dtype, str(batch), str(arguments.length), str(arguments.steps)]
    own = [sys.executable, __file__, folder, "--own", "--batch", str(batch), "--dtype", dtype]
    own += ["--length", numbers[2], "--steps", numbers[3], *(["--int8"] * arguments.int8)]
    commands = {"here": own}
    if arguments.ranks > 1:
        ranks = str(arguments.ranks)
        commands[f"{ranks} ranks"] = ["mpiexec", "-n", ranks, *own, "--ranks", ranks]
    if arguments.other:
        commands["transformers"] = [arguments.other, "-c", OTHER, folder, *numbers]
    if arguments.llama_cpp and batch == 1:
        if not gguf.exists():
            subprocess.run([arguments.llama_cpp, "-c", GGUF, folder, str(gguf), dtype], check=True)
        commands["llama.cpp"] = [arguments.llama_cpp, "-c", LLAMA_CPP, str(gguf), *numbers]
    return {name: partial(_run, command) for name, command in commands.items()}


if __name__ == "__main__":
    raise SystemExit(main())
