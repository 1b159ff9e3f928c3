# SPDX-License-Identifier: Apache-2.0
"""The user guide's code blocks, run as they stand; only the device name follows the platform."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_yaml

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
GUIDE = (ROOT / "tests/data/guide/pretrain_gpt.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, re.S)


def block(language, start):
    """The block of the guide that contains a text."""
    (found,) = {text for kind, text in BLOCKS if kind == language and start in text}
    return found


MODEL = block("python", "class GPTModel(Module)")
POST_PROCESSING = block("python", "def post_language_model_processing")
PREPARATION = block("python", "initialize_megatron(extra_args_provider=_add_pangu_args)").replace(
    '"Ascend"', '"CPU"'
)
PROVIDER = block("python", "def model_provider_func")
TRAINING = block("python", "pretrain(\n")
ENVIRONMENT, START = block("bash", "HCCL_BUFFSIZE"), block("bash", "msrun --worker_num 8")
CALL = block("bash", "bash pretrain_gpt.sh")
TRAIN_YAML, ACCELERATE_YAML, MODEL_YAML = (
    block("yaml", f"{name}:\n") for name in ("train_config", "accelerate_config", "llm")
)

GLUE = """
import mindspore as ms
from mindspeed_ms.core.config import get_args, init_configs_from_args
from mindspeed_ms.legacy.data.data_samplers import build_pretraining_data_loader
from mindspeed_ms.engine.datasets import (
    get_batch, get_train_valid_test_num_samples, train_valid_test_datasets_provider,
)
from mindspeed_ms.training.initialize import initialize_megatron
from mindspeed_ms.engine.parallel_setup import set_parallel_context, set_seed

def _add_pangu_args(parser):
    group = parser.add_argument_group("pangu")
    group.add_argument("--pangu-note", default="none")
    parser.set_defaults(yaml={files!r})
    return parser
"""
"""What the guide leaves to its reader: imports, the user's own flags, and where the files are."""


def tiny_files(folder, tensor, stages, chunks):
    """The three files of the guide with sizes for a test; every key is one the guide shows."""
    train, accelerate, model = map(yaml.safe_load, (TRAIN_YAML, ACCELERATE_YAML, MODEL_YAML))
    train["train_config"]["ms_training_config"] |= {
        "bucket_size": 20000,
        "training_iters": 4,
        "log_style": "guide",
        "save_checkpoints": False,
        "global_batch_size": 8,
    }
    train["dataset_config"] = {
        "data_path": str(ROOT / "data/tiny/tiny_text_document"),
        "split": "100,0,0",
        "data_cache_path": str(folder / "cache"),
        "eos_token_id": 1,
    }
    parallelization = accelerate["accelerate_config"]["parallelization"]
    parallelization |= {"tensor_parallel": tensor, "use_sequence_parallel": tensor > 1}
    parallelization["pipeline"] |= {
        "num_stages": stages,
        "virtual_pipeline_model_parallel_size": chunks,
        "layer_list": "[[1,2],[2,1]]" if chunks else None,
    }
    if chunks:
        train["train_config"]["recompute_config"]["select_comm_recompute"] = "[[1,1],[1,1]]"
    accelerate["accelerate_config"]["precision"] |= {
        "compute_dtype": "float32",
        "residual-connection": "float32",
    }
    llm = model["model_config"]["llm"]
    llm["tokenizer"]["padded_size"] = 512
    llm["embedding"]["hidden_size"] = 64
    llm["position"]["max_size"] = 32
    llm["blocks"]["num_layers"] = 6
    llm["blocks"]["attention"] |= {"head_num": 4, "kv_group_size": 2}
    llm["blocks"]["ffn"]["hidden_size"] = 96
    names = []
    for part, content in (("", model), ("_accelerate", accelerate), ("_train", train)):
        names.append(folder / f"model_38BV3_seq_4K{part}.yaml")
        names[-1].write_text(yaml.safe_dump(content))
    return [str(name) for name in names]


def write_script(folder, own_model, **layout):
    """``pretrain_gpt.py`` of the guide; with ``own_model`` its GPTModel is the one it defines."""
    files = tiny_files(folder, **layout)
    own = [MODEL, POST_PROCESSING] if own_model else []
    parts = [GLUE.replace("{files!r}", repr(files)), PREPARATION, PROVIDER, *own, TRAINING]
    (folder / "pretrain_gpt.py").write_text("\n".join(parts), encoding="utf-8")


def losses_in(text):
    shape = r"INFO - Epoch: 0, Step: (\d+), Loss: (\d+\.\d{16}), .*Time: \d+\.\d\d ms"
    return [(int(step), float(loss)) for step, loss in re.findall(shape, text)]


def many(count, port):
    """How ``count`` ranks start the script."""
    sizes = ["--worker_num", str(count), "--local_worker_num", str(count), "--join", "True"]
    return ["msrun", *sizes, "--master_port", str(port), "--log_dir", "log", "pretrain_gpt.py"]


def run(words, folder):
    result = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{SCRIPTS}:{os.environ['PATH']}"},
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_all_blocks_of_the_guide_are_used():
    used = {
        *(MODEL, POST_PROCESSING, PROVIDER, TRAINING, ENVIRONMENT, START, CALL),
        *(TRAIN_YAML, ACCELERATE_YAML, MODEL_YAML),
        block("python", "initialize_megatron(extra_args_provider=_add_pangu_args)"),
    }
    assert {text for kind, text in BLOCKS if kind != "text"} == used


def test_the_yaml_blocks_make_one_configuration(tmp_path):
    names = []
    for number, text in enumerate((MODEL_YAML, ACCELERATE_YAML, TRAIN_YAML)):
        names.append(tmp_path / f"{number}.yaml")
        names[-1].write_text(text, encoding="utf-8")
    config = init_configs_from_yaml(names)
    model = config.model_config
    assert (model.num_layers, model.hidden_size, model.vocab_size) == (62, 6144, 165664)
    assert (model.num_attention_heads, model.num_kv_groups, model.ffn_hidden_size) == (48, 8, 27648)
    assert model.use_sandwich_norm and model.attn_post_norm_scale == 0.0447
    assert config.parallel_config.tensor_model_parallel_size == 8
    assert config.training_config.bucket_size == 200000000


def test_the_guides_script_trains_with_both_models(tmp_path):
    runs = []
    for own_model in (False, True):
        folder = tmp_path / str(own_model)
        folder.mkdir()
        write_script(folder, own_model, tensor=1, stages=1, chunks=None)
        runs.append(losses_in(run([sys.executable, "pretrain_gpt.py"], folder)))
    assert [step for step, _ in runs[0]] == [1, 2, 3, 4]
    assert 5.5 < runs[0][0][1] < 7.5
    assert runs[0] == runs[1]


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ulysses_cp_algo", "megatron_cp_algo"])
def test_the_guides_model_shares_sequences_on_middle_stages(tmp_path, algo):
    found = {}
    for count, flags in (
        (1, []),
        (6, ["--context-parallel-size", "2", "--context-parallel-algo", algo]),
    ):
        folder = tmp_path / str(count)
        folder.mkdir()
        write_script(folder, own_model=True, tensor=1, stages=3 if count > 1 else 1, chunks=None)
        start = many(count, 24371) if count > 1 else [sys.executable, "pretrain_gpt.py"]
        text = run([*start, *flags], folder)
        text += "".join(log.read_text(errors="replace") for log in folder.glob("log/worker_*.log"))
        found[count] = losses_in(text)[:4]
    assert len(found[1]) == 4
    assert found[6] == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in found[1]]


@pytest.mark.slow
@pytest.mark.parametrize("own_model", [False, True])
def test_the_guides_shell_script_runs_on_eight_ranks(tmp_path, own_model):
    write_script(tmp_path, own_model, tensor=2, stages=2, chunks=2)
    (tmp_path / "pretrain_gpt.sh").write_text(ENVIRONMENT + START)
    run(CALL.split(), tmp_path)
    logs = sorted((tmp_path / "msrun_log").glob("worker_*.log"))
    assert len(logs) == 8
    texts = [log.read_text(errors="replace") for log in logs]
    losses = [losses_in(text) for text in texts if losses_in(text)]
    assert losses and [step for step, _ in losses[0]] == [1, 2, 3, 4]
    single = tmp_path / "single"
    single.mkdir()
    write_script(single, own_model, tensor=1, stages=1, chunks=None)
    alone = losses_in(run([sys.executable, "pretrain_gpt.py"], single))
    for (_, many), (_, one) in zip(losses[0], alone, strict=True):
        assert many == pytest.approx(one, rel=1e-5)
