# SPDX-License-Identifier: Apache-2.0
"""The toolkit's command, ``run_mindformer.py`` and the scripts around them: they really train."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import guides
import numpy as np
import pytest
from launch_scripts import (
    MULTI,
    ROOT,
    SCRIPTS,
    SINGLE,
    environment,
    logs,
    losses,
    run,
    write_table,
)

from mindspeed_ms.toolkit import run as toolkit_run
from mindspeed_ms.toolkit import run_mindformer
from mindspeed_ms.toolkit.compat.guard import PATH

SIZES = "--hidden_size=32 --num_layers=2 --num_heads=4 --seq_length=16 --vocab_size=64"
TINY = [*SIZES.split(), "--start_lr=0.01", "--batch_size=8"]
STEPS = 3


@pytest.fixture
def data(tmp_path):
    """A folder with rows of seq_length + 1 tokens, enough for three steps of 8."""
    folder = tmp_path / "train"
    folder.mkdir()
    rows = np.random.default_rng(5).integers(0, 64, (STEPS * 8, 17), dtype=np.int32)
    np.save(folder / "rows.npy", rows)
    return folder


def toolkit(folder, *words, module="mindspeed_ms.toolkit.run", **variables):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_guides_command_trains(tmp_path, data):
    block = guides.block("how_to_config", "bash", "transformer.trainer.trainer")
    block = block.replace('--optimizer="adam"\n', '--optimizer="adam" \\\n')  # it lacks this one
    command = f"{block.rstrip().removesuffix(chr(92))} {' '.join(TINY)}"
    variables = {"EPOCH_SIZE": "2", "DATA_DIR": str(data)}
    path = os.pathsep.join((str(PATH), str(ROOT)))
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment(**variables) | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, added, rest = re.split("added by the user:\n|from gpt_base.yaml:\n", done.stdout)
    assert first.startswith("overwritten by the command line:\n") and "  epoch_size: 2\n" in first
    assert added == "  custom_args: test\n" and "  parallel_config.data_parallel: 1\n" in rest
    assert len(losses(done.stdout)) == 2 * STEPS
    assert done.stderr.startswith("transformer: provided by mindspeed_ms")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch_size"], "error: --epoch_size needs a value"),
        (["--auto_model=gpt"], "error: run_mode train needs data; give train_dataset"),
        (["--auto_model=gpd"], "error: model 'gpd' is unknown"),
        (["--auto_model=gpt", "--parallel_mode=x"], "error: parallel_mode 'x': use stand_alone"),
        (["--auto_model=gpt", "--import_module=none_such"], "error: --import_module none_such"),
    ],
)
def test_a_users_mistake_is_one_line(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        toolkit_run.main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


OWN = """
import sys
import numpy as np
from mindspore import nn, ops, Parameter, Tensor
from mindspeed_ms import register_dataset, register_model


class Settings:
    def __init__(self, vocab_size, width, **others):
        self.vocab_size, self.width = vocab_size, width


@register_model("my_model")
class Bigrams(nn.Cell):
    Config = Settings

    def __init__(self, config):
        super().__init__()
        table = np.random.default_rng(1).normal(0, 0.1, (config.vocab_size, config.width))
        self.table = Parameter(Tensor(table.astype(np.float32)), name="table")
        self.head = Parameter(Tensor(table.T.astype(np.float32)), name="head")

    def construct(self, tokens, labels, loss_mask=None, attention_mask=None, position_ids=None):
        hidden = ops.gather(self.table, tokens.reshape(-1), 0)
        return ops.cross_entropy(ops.matmul(hidden, self.head), labels.reshape(-1))


@register_dataset("my_data")
def rows(options, split):
    print("data for", options.custom_args, split)
    generator = np.random.default_rng(2)
    return [{"input_ids": generator.integers(0, 64, (8, 17), dtype=np.int32)} for _ in range(3)]
"""


def test_models_and_data_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    words = [*TINY, "--width=8", "--auto_model=my_model", "--auto_dataset=my_data"]
    words += ["--import_module=mine", "--custom_args=test", "--max_steps=4"]
    (tmp_path / "own.yaml").write_text(
        "import_module: ''\nmodel: {vocab_size: 1, hidden_size: 1, num_layers: 1, num_heads: 1,\n"
        "  seq_length: 1, width: 1, compute_dtype: float32}\nstart_lr: 0.1\nbatch_size: 1\n"
    )
    done = toolkit(tmp_path, "--config=own.yaml", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data for test train" in done.stdout
    found = losses(done.stdout)
    assert len(found) == 4 and found[0] == pytest.approx(np.log(64), abs=0.05)
    assert "tensor, pipeline) model parallel rank (0, 0): 1024" in done.stdout


def test_a_script_of_ones_own_reads_its_options(tmp_path, data):
    (tmp_path / "train.py").write_text(
        "import sys\n"
        "from mindspeed_ms.toolkit.run import parse, run_train\n"
        "opt = parse(sys.argv[1:])\n"
        "print('custom:', opt.custom_args, opt.hidden_size)\n"
        "state = run_train(opt)\n"
        "print('steps:', state.iteration)\n"
    )
    words = ["train.py", "--auto_model=gpt", f"--train_data_path={data}", "--custom_args=test"]
    done = subprocess.run(
        [sys.executable, *words, *TINY],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "custom: test 32\n" in done.stdout and f"steps: {STEPS}\n" in done.stdout, done.stderr


# ---- every layout trains alike ----


def alone(folder, data, *words):
    """Losses of one rank."""
    done = toolkit(folder, "--auto_model=gpt", f"--train_data_path={data}", *TINY, *words)
    assert done.returncode == 0, done.stderr
    return losses(done.stdout)


def together(folder, ranks, data, *words):
    """Losses of several ranks that a launch script has started."""
    (folder / "job").mkdir()
    order = f"python -m mindspeed_ms.toolkit.run --auto_model=gpt --train_data_path={data}"
    order = " ".join([order, *TINY, *words])
    table = write_table(folder / "job", devices=ranks)
    done = run(
        SCRIPTS / SINGLE,
        (order, table, f"[0,{ranks}]", ranks),
        folder / "job",
        WAIT="1",
        OMP_NUM_THREADS="1",
    )
    texts = logs(folder / "job", ranks)
    assert done.returncode == 0, texts
    return losses(texts[-1]), texts


LAYOUTS = [
    pytest.param(2, ["--data_parallel=2", "--optimizer_shard=True"], id="dp2, optimizer cut"),
    pytest.param(2, ["--parallel_mode=data_parallel"], id="data_parallel"),
    pytest.param(2, ["--parallel_mode=auto_parallel"], id="auto_parallel"),
    pytest.param(
        2,
        ["--model_parallel=2", "--use_seq_parallel=True", "--recompute=True"]
        + ["--mp_comm_recompute=False", "--micro_batch_interleaved_num=2"],
        id="tp2, sequence, recompute, interleaved",
    ),
    pytest.param(4, ["--data_parallel=2", "--model_parallel=2"], id="dp2 tp2"),
    pytest.param(
        4,
        ["--model_parallel=2", "--pipeline_stage=2", "--micro_batch_num=2"],
        id="tp2 pp2",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "words"), LAYOUTS)
def test_losses_do_not_depend_on_the_layout(tmp_path, data, ranks, words):
    expected = alone(tmp_path, data)
    found, _ = together(tmp_path, ranks, data, *words)
    assert len(found) == STEPS
    assert found == pytest.approx(expected, rel=1e-5)


def test_two_ranks_train_as_one(tmp_path, data):
    expected = alone(tmp_path, data)
    found, texts = together(tmp_path, 2, data, "--model_parallel=2", "--vocab_emb_dp=True")
    assert found == pytest.approx(expected, rel=1e-5) and len(found) == STEPS
    assert "vocab_emb_dp has no effect: the embedding is cut over the 2" in texts[0]
    assert "overwritten by the command line:" in texts[0]
    assert "overwritten by the command line:" not in texts[1]


@pytest.mark.slow
def test_sizes_that_do_not_make_up_the_ranks_end_the_job(tmp_path, data):
    with pytest.raises(AssertionError, match="data_parallel 4 x .* = 4, but there are 2 ranks"):
        together(tmp_path, 2, data, "--data_parallel=4")


# ---- MindFormers' command and its scripts ----


@pytest.fixture
def config(tmp_path, data):
    """A tiny configuration on top of the shipped tree, for a folder ``scripts`` beside it."""
    path = tmp_path / "run_tiny.yaml"
    path.write_text(
        f"""
base_config: [{ROOT}/configs/gpt2/run_gpt2.yaml]
context: {{device_target: CPU}}
output_dir: ./output
runner_config: {{epochs: 1, batch_size: 8}}
lr_schedule: {{learning_rate: 0.01}}
train_dataset: {{data_loader: {{dataset_dir: ./train}}}}
eval_dataset: {{data_loader: {{dataset_dir: ./train}}}}
parallel: {{parallel_mode: 1}}
model:
  model_config: {{hidden_size: 32, num_layers: 2, num_heads: 4, seq_length: 16, vocab_size: 64,
    compute_dtype: float32, embedding_dropout_prob: 0, hidden_dropout_rate: 0,
    attention_dropout_rate: 0, eos_token_id: 0}}
"""
    )
    return path


@pytest.mark.slow
def test_one_device_by_run_standalone(tmp_path, config):
    words = (config.name, 0, "train")
    done = run(SCRIPTS / "run_standalone.sh", words, tmp_path, WAIT="1")
    assert done.stdout == "start training for device 0\n"
    (text,) = logs(tmp_path, 1)
    assert done.returncode == 0 and len(losses(text)) == STEPS, text
    assert (tmp_path / "output/latest_checkpointed_iteration.txt").read_text().strip() == "3"
    assert (tmp_path / "mf_standalone/env.log").is_file()


def test_two_ranks_by_run_distribute(tmp_path, config):
    cut = config.read_text() + "parallel_config: {model_parallel: 2}\n"
    config.write_text(cut)
    words = (write_table(tmp_path), config.name, "[0,2]", "train")
    done = run(SCRIPTS / "run_distribute.sh", words, tmp_path, WAIT="1", OMP_NUM_THREADS="1")
    texts = logs(tmp_path, 2)
    assert done.returncode == 0, texts
    assert done.stdout == "".join(f"start training for rank {r}, device {r}\n" for r in range(2))
    assert len(losses(texts[1])) == STEPS
    for rank in range(2):  # each in a folder of its own, one checkpoint together
        assert f"RANK_ID={rank}" in (tmp_path / f"mf_parallel{rank}/env.log").read_text()
        assert not (tmp_path / f"mf_parallel{rank}/output").exists()
    assert (tmp_path / "output/latest_checkpointed_iteration.txt").read_text().strip() == "3"


@pytest.mark.slow
def test_four_ranks_of_two_nodes_by_run_distribute(tmp_path, config):
    sizes = "{model_parallel: 2, pipeline_stage: 2, micro_batch_num: 2}"
    config.write_text(
        config.read_text().replace("batch_size: 8", "batch_size: 4") + f"parallel_config: {sizes}\n"
    )
    table = write_table(tmp_path, servers=("127.0.0.1", "127.0.0.2"))
    shared = environment(WAIT="1", OMP_NUM_THREADS="1")
    started = [
        subprocess.Popen(
            ["bash", SCRIPTS / "run_distribute.sh", table, config.name, devices, "train", "4"],
            cwd=tmp_path,
            env=shared,
        )
        for devices in ("[2,4]", "[0,2]")
    ]
    assert [one.wait(timeout=120) for one in started] == [0, 0], logs(tmp_path, 4)
    sizes = ["parallel_config.model_parallel=1", "parallel_config.pipeline_stage=1"]
    words = ["--config", config, "--use_parallel=True", "--options", *sizes]
    done = toolkit(tmp_path, *words, module="mindspeed_ms.toolkit.run_mindformer")
    texts = logs(tmp_path, 4)
    assert losses(texts[3]) == pytest.approx(losses(done.stdout), rel=1e-5), done.stderr


@pytest.mark.slow
def test_evaluation_and_going_on_by_run_mindformer(tmp_path, config):
    def command(*words):
        done = toolkit(
            tmp_path, "--config", config, *words, module="mindspeed_ms.toolkit.run_mindformer"
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert len(losses(command())) == STEPS
    resumed = command("--resume_training", "True", "--options", "max_steps=5")
    assert re.findall(r"iteration +(\d+)/ +5", resumed) == ["4", "5"]
    tuned = command("--run_mode=finetune", "--load_checkpoint=output", "--output_dir=tuned")
    assert re.findall(r"iteration +(\d+)/", tuned) == ["1", "2", "3"]
    assert losses(tuned)[0] < np.log(64) - 0.01  # from trained weights
    assert "lm loss PPL" in command("--run_mode=eval", "--load_checkpoint=output")


def test_a_mistake_in_the_configuration_is_one_line(config, capsys):
    for words, message in (
        (["--device_target", "Ascend"], "MINDSPEED_MS_DEVICE_TARGET=CPU to run Ascend scripts"),
        (["--train_dataset_dir", "none"], "error: training data: none is no folder"),
        (["--run_mode=predict"], "error: there is nothing to go on with; give input_data"),
    ):
        with pytest.raises(SystemExit) as caught:
            run_mindformer.main(["--config", str(config), *words])
        error = capsys.readouterr().err
        assert caught.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "words", "text"),
    [
        ("run_distribute.sh", "a b c", "Usage Help: bash run_distribute.sh [RANK_TABLE_FILE]"),
        ("run_distribute.sh", "a b c d e f", "Usage Help: bash run_distribute.sh"),
        (
            "run_distribute.sh",
            "none.json c.yaml [0,2] train",
            "error: RANK_TABLE_FILE={}/none.json",
        ),
        ("run_distribute.sh", "t.json none.yaml [0,2] train", "error: config_path={}/none.yaml is"),
        (
            "run_distribute.sh",
            "t.json c.yaml [a,2] train 2",
            "error: start_device=a is not a number",
        ),
        ("run_distribute.sh", "t.json c.yaml [0,b] train", "error: end_device=b is not a number"),
        (
            "run_distribute.sh",
            "t.json c.yaml [0,2] tran",
            "error: run_mode=tran is not one of train",
        ),
        ("run_distribute.sh", "t.json c.yaml [0,2] train x", "error: rank_size=x is not a number"),
        ("run_standalone.sh", "c.yaml 0", "Usage Help: bash run_standalone.sh [CONFIG_PATH]"),
        ("run_standalone.sh", "none.yaml 0 train", "error: config_path={}/none.yaml is not a file"),
        ("run_standalone.sh", "c.yaml x train", "error: device_id=x is not a number"),
        ("run_standalone.sh", "c.yaml 0 tran", "error: run_mode=tran is not one of"),
        ("../examples/pretrain_gpt.sh", "0 1", "Usage: bash examples/pretrain_gpt.sh DEVICE_ID"),
        ("../examples/pretrain_gpt.sh", "0 1 d 4", "Usage: bash examples/pretrain_gpt.sh"),
        (
            "../examples/pretrain_gpt_distributed.sh",
            "2",
            "Usage: bash examples/pretrain_gpt_distri",
        ),
    ],
)
def test_scripts_say_what_they_need(tmp_path, script, words, text):
    (tmp_path / "t.json").write_text("{}")
    (tmp_path / "c.yaml").write_text("{}")
    done = run(SCRIPTS / script, words.split(), tmp_path)
    assert done.returncode == 1 and done.stdout.startswith(text.format(tmp_path)), done.stdout
    assert not (tmp_path / "output").exists()


@pytest.fixture
def recorder(tmp_path):
    """A PATH whose ``python`` only says what it was started with."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(
        "#!/bin/sh\n"
        "echo $RANK_ID $RANK_SIZE $DEVICE_ID $RANK_TABLE_FILE $(pwd)\n"
        'for word in "$@"; do echo "$word"; done\n'
    )
    (tmp_path / "bin/python").chmod(0o755)
    return f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}"


def recorded(folder, rank):
    """(variables and folder, words) of a rank."""
    log = folder / f"output/log/rank_{rank}/mindformer.log"
    first, *words = log.read_text().splitlines()
    return first.split(), words


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        ("[0,2] train", {0: (0, 2), 1: (1, 2)}),
        ("[4,6] predict", {0: (4, 2), 1: (5, 2)}),
        ("[8,10] eval 32", {8: (0, 32), 9: (1, 32)}),
    ],
)
def test_run_distribute_starts_what_the_guide_says(tmp_path, recorder, words, ranks):
    (tmp_path / "t.json").write_text("{}")
    (tmp_path / "a b.yaml").write_text("{}")
    devices, mode, *size = words.split()
    words = ("t.json", "a b.yaml", devices, mode, *size)
    done = run(SCRIPTS / "run_distribute.sh", words, tmp_path, WAIT="1", PATH=recorder)
    assert done.returncode == 0
    for rank, (device, count) in ranks.items():
        variables, command = recorded(tmp_path, rank)
        folder = tmp_path / f"mf_parallel{rank if size else device}"
        assert variables == [*map(str, (rank, count, device)), f"{tmp_path}/t.json", str(folder)]
        assert command == [
            f"{ROOT}/run_mindformer.py",
            f"--config={tmp_path}/a b.yaml",
            "--use_parallel=True",
            f"--run_mode={mode}",
        ]
        assert f"start training for rank {rank}, device {device}\n" in done.stdout


def test_the_guides_four_hosts_start_32_ranks(tmp_path, recorder):
    block = guides.block("gpt2_13b_distributed", "shell", "[8,16] train 32")
    commands = [line for line in block.splitlines() if line.startswith("bash")]
    table = guides.blocks("gpt2_13b_distributed", "json")[0].partition("\n")[2]  # after its comment
    (tmp_path / "table.json").write_text(table)
    for command in commands:
        words = re.sub(r"{RANK_TABLE_FILE path[^}]*}", "table.json", command).split()[2:]
        words[1] = str(ROOT / "scripts" / words[1])
        done = run(SCRIPTS / "run_distribute.sh", words, tmp_path, WAIT="1", PATH=recorder)
        assert done.returncode == 0, done.stdout
    for rank in range(32):
        variables, command = recorded(tmp_path, rank)
        assert variables[:3] == [str(rank), "32", str(rank % 8)]
        config = Path(command[1].removeprefix("--config=")).resolve()
        assert config == ROOT / "configs/gpt2/run_gpt2_13b.yaml"


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_the_guides_distributed_tasks_start(tmp_path, recorder, kind):
    block = guides.block("develop_with_api", "shell", "run_distribute_{single/multi}_node.sh")
    commands = [line for line in block.splitlines() if line.startswith("bash")]
    assert len(commands) == 4
    table = write_table(tmp_path, devices=4)
    for command in commands:
        (_, script, order, *words) = shlex.split(command.replace("{single/multi}", kind))
        done = run(SCRIPTS / script, (order, *words), tmp_path, WAIT="1", PATH=recorder)
        assert done.returncode == 0
        for rank in range(4):
            variables, found = recorded(tmp_path, rank)
            assert variables == [str(rank), "4", str(rank), str(tmp_path / table), str(tmp_path)]
            assert found == shlex.split(order)[1:]  # quotes within arrive as the shell means them


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_examples_train(tmp_path, data, ranks):
    name = "pretrain_gpt.sh" if ranks == 1 else "pretrain_gpt_distributed.sh"
    first = 0 if ranks == 1 else ranks
    done = run(ROOT / "examples" / name, (first, 1, data, *TINY), tmp_path, WAIT="1")
    texts = logs(tmp_path, ranks)
    assert done.returncode == 0 and len(losses(texts[-1])) == STEPS, texts
    bad = run(ROOT / "examples" / name, (first, 1, "none", *TINY), tmp_path, WAIT="1")
    assert bad.returncode == 2 and "error: training data: none is no" in logs(tmp_path, 1)[0]


@pytest.mark.slow
def test_megatrons_entry_point_starts_by_the_launch_scripts_too(tmp_path):
    words = f"python {ROOT}/pretrain_gpt.py --num-layers 2 --hidden-size 32 --train-iters 2"
    words += " --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 --mock-data"
    words += " --micro-batch-size 2 --lr 0.01 --log-interval 1 --tensor-model-parallel-size 2"
    words += " --tokenizer-type NullTokenizer --vocab-size 63"
    table = write_table(tmp_path)
    done = run(SCRIPTS / MULTI, (words, table, "[0,2]", 2), tmp_path, WAIT="1")
    texts = logs(tmp_path, 2)
    assert done.returncode == 0 and len(losses(texts[1])) == 2, texts
    assert "tensor-model-parallel size: 2" in texts[0]
